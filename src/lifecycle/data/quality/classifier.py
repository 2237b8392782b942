"""A user's own function as a quality filter: it scores a document, and those below a threshold are dropped.

    # my_filters.py, in the working directory or any installed package
    def educational(text: str) -> float: ...

    data.sources.web.filters.classifier={function: 'my_filters:educational', threshold: 0.5}

A score must depend on the text alone: documents are scored by several processes, and again in every pass.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lifecycle.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Keep documents to which `function` ("module:name", text -> number) gives `threshold` or more."""

    function: str
    threshold: float = 0.5

    def check(self, where: str) -> None:
        """Raise UserError where the function cannot be imported; `where` is the dotted key of this block."""
        _function(self.function, f"{where}.function")

    def score(self, text: str) -> float:
        """The function's score of a document. Raises UserError where it is no number."""
        score = _function(self.function, "filters.classifier.function")(text)
        try:
            return float(score)
        except (TypeError, ValueError):
            raise UserError(
                f"filters.classifier.function: {self.function} gave {score!r} for a document; wanted a number"
            ) from None

    @property
    def version(self) -> str:
        """A hash of the function's file: when it changes, cached results of the scores are computed again."""
        file = getattr(sys.modules.get(_function(self.function, "function").__module__), "__file__", None)
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""


@cache
def _function(name: str, where: str) -> Callable[[str], float]:
    """A function by its name. A config file must not be able to run any function: those of Python's own library are
    refused, and so are names that a module only imports from elsewhere.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise UserError(f"{where} is {name!r}; wanted MODULE:FUNCTION, such as my_filters:educational")
    if module_name.split(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{where} is {name!r}, of Python's own library; wanted a function of your own, MODULE:FUNCTION")
    if os.getcwd() not in sys.path:  # `lifecycle` as a command does not look there, `python -m lifecycle` does
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{where} is {name!r}, and importing {module_name} fails ({type(error).__name__}: {error}): put "
            f"{module_name.split('.')[0]}.py into the working directory, or install its package"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UserError(f"{where} is {name!r}, and {module_name} has no function {attribute}")
    if getattr(found, "__module__", None) != module_name:
        raise UserError(
            f"{where} is {name!r}, which {module_name} only imports: name the module that defines it "
            f"({getattr(found, '__module__', 'unknown')}:{attribute})"
        )
    function: Callable[[str], float] = found
    return function
