"""Every grader by its name, what a record must have for it, and which of them can tell that they read an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from lifecycle.errors import UserError
from lifecycle.rewards import readable
from lifecycle.rewards.choice import choice
from lifecycle.rewards.exact_match import exact_match
from lifecycle.rewards.math import check_math, load, math
from lifecycle.rewards.number import number
from lifecycle.rewards.programs.code import code
from lifecycle.rewards.record import Answered, Grader
from lifecycle.rewards.shape import in_tags, length, repetition

GraderName = Literal["choice", "number", "math", "exact_match", "code", "format", "length", "repetition"]
GRADERS: dict[str, Grader] = {
    "choice": choice,
    "number": number,
    "math": math,
    "exact_match": exact_match,
    "code": code,
    "format": in_tags,
    "length": length,
    "repetition": repetition,
}
ANSWER = ("choice", "number", "math", "exact_match")
"""Graders that compare with the known answer."""

OF_SHAPE = ("format", "length", "repetition")
"""Graders that look for no answer, but at how all is said."""

KNOW_THE_ANSWER = (*ANSWER, "code")
"""Graders whose 1 says that a completion is right, whatever it looks like."""

STATED = "/stated"
"""Behind the name of a grader: whether it finds an answer to mark, right or wrong."""
READERS: dict[str, Grader] = {
    f"choice{STATED}": readable.choice,
    f"number{STATED}": readable.number,
    f"math{STATED}": readable.math,
    f"exact_match{STATED}": readable.text,
    f"code{STATED}": readable.program,
}
"""Graders of shape have none: they mark any text."""

READ_OF_META = ("options", "tests", "setup", "entry_point", "begun", "inputs", "outputs")
"""What of a record's meta graders read; the rest is not sent to them."""


def can_mark(name: str, record: Answered) -> bool:
    """Whether the record has what grader `name` needs."""
    if name == "code":
        return bool(record.meta.get("tests") or record.meta.get("inputs"))
    return name not in ANSWER or bool(record.answer.strip())


def check(names: Iterable[str], where: str) -> None:
    """Raise UserError for a name that is no grader, and for one whose library is not installed."""
    for name in names:
        if name not in GRADERS:
            raise UserError(f"{where} names '{name}', which is no grader: take of {', '.join(get_args(GraderName))}")
        if name == "math":
            check_math()


def prepare(names: Iterable[str]) -> None:
    """Load what these graders need before the first completion is marked."""
    if "math" in names:
        load()
