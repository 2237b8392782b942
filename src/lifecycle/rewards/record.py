"""What a grader may read beside a completion, and what a grader is.

def grader(completion: str, record: Answered) -> float: ...        0: wrong, 1: right, between: in part
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A prompt as graders know it.

    answer: the known one; "" where there is none. prompt: its text, marks of turns included. meta: plain values of the
    record (`options` of a choice, `tests` of a program), and the settings of graders (`GradingKeys`).
    """

    answer: str = ""
    prompt: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


Grader = Callable[[str, Answered], float]
