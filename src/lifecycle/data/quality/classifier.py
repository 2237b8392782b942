"""A user's own function as a quality filter: it scores a document, and those below a threshold are dropped.

    # my_filters.py, in the working directory or any installed package
    def educational(text: str) -> float: ...

    data.sources.web.filters.classifier={function: 'my_filters:educational', threshold: 0.5}

A score must depend on the text alone: documents are scored by several processes, and again in every pass.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lifecycle.errors import UserError
from lifecycle.system.foreign import users_own


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


def _function(name: str, where: str) -> Callable[[str], float]:
    function: Callable[[str], float] = users_own(name, where, what="function", example="my_filters:educational")
    return function
