"""One file a family: what an architecture of `transformers` has, and how its files say it.

The file's name is the family's and their model_type; it holds one `FAMILY` (see family.py), and is found by its name.
"""

from __future__ import annotations

import importlib
import pkgutil

from lifecycle.model.family import Family

FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""The names of all."""


def family_of(name: str) -> Family:
    """The family of that name, one of `FAMILIES`."""
    found: Family = importlib.import_module(f"{__name__}.{name}").FAMILY
    return found
