"""exact_match: 1 where what a completion says is the known answer, letter by letter, else 0.

Thoughts before `</think>` and the tags of `<answer>` are not said; space around the text is nothing.
"""

from __future__ import annotations

from lifecycle.rewards.record import Answered
from lifecycle.rewards.stated import said


def exact_match(completion: str, record: Answered) -> float:
    """The mark of a completion."""
    return float(said(completion) == said(record.answer))
