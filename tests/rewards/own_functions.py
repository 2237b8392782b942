"""Rewards as a user writes them, well and badly."""

import math
import os
import sys
import time
from fractions import Fraction
from typing import Any

from lifecycle.rewards.record import Answered


def short(completion: str, record: Answered) -> float:
    print("what a function prints is no message")
    return 2.5 - len(completion) + record.meta.get("bonus", 0)


def by_the_text(completion: str, record: Answered) -> Any:
    """Returns, or does, what the completion says."""
    if completion == "raise":
        raise KeyError("kw")
    if completion == "input":
        input("what reads no message")
    if completion == "sleep":
        time.sleep(60)
    if completion == "compute":
        while True:
            pass
    if completion == "leave":
        sys.exit(3)
    values: dict[str, Any] = {
        "none": None,
        "nan": math.nan,
        "inf": math.inf,
        "huge": -1e31,
        "text": "1.0",
        "yes": True,
        "list": [1],
    }
    values |= {"part": Fraction(1, 4), "here": os.environ.get("LIFECYCLE_TEST_KEY") == "k"}
    return values[completion]


def asleep(completion: str, record: Answered) -> float:
    time.sleep(60)
    return 1.0


def told(completion: str, record: Answered) -> bool:
    """Whether the record is that of test_functions."""
    prompt = "system: s\n\nuser: q"
    return (record.prompt, record.answer, dict(record.meta)) == (prompt, "4", {"options": ["a"], "hard": 3})
