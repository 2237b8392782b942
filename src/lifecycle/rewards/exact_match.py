"""exact_match: 1 where a completion is the known answer, letter by letter, else 0. Space around them is nothing."""

from __future__ import annotations


def exact_match(completion: str, answer: str) -> float:
    """The mark of a completion."""
    return float(completion.strip() == answer.strip())
