"""The language of a document, by py3langid: naive Bayes over byte n-grams (langid.py, ACL 2012), 140 labels.

Its model (4.6 MB) is part of the package: no network, no GPU. Under a millisecond a document.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from lifecycle.bounds import Share
from lifecycle.errors import UserError

CHARACTERS_READ = 1000  # from the start of a document


@dataclass(frozen=True, kw_only=True)
class LanguageRule:
    """Keep documents whose most likely language is one of `keep` (ISO 639 codes) with at least `min_probability`."""

    keep: list[str]
    min_probability: Share = 0.5

    def check(self, where: str) -> None:
        """Raise UserError for values that are not valid; `where` is the dotted key of this block."""
        if not self.keep:
            raise UserError(f"{where}.keep is empty; name languages such as [en], or set {where}=null for all")
        known = _identifier().labels
        for code in self.keep:
            if code not in known:
                near = difflib.get_close_matches(code, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"{where}.keep names {code!r}; wanted ISO 639 codes such as en{hint}")


def language(text: str) -> tuple[str, float]:
    """The most likely language of the start of `text`, and its probability."""
    code, probability = _identifier().classify(text[:CHARACTERS_READ])
    return str(code), float(probability)


@cache
def _identifier() -> LanguageIdentifier:
    """Loaded for the first document, since loading takes seconds."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
