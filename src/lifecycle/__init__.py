"""The whole life of a language model in one codebase; `python -m lifecycle` is the way in."""

__version__ = "0.1.0"
