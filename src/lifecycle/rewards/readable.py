"""Whether a grader finds an answer in a completion, right or wrong: 1 where it does, else 0.

    choice     a single letter that is an option's, or the text of a single option
    number     a number that is stated last
    math       a number or a formula that math-verify reads
    text       anything that is said: `exact_match` compares all of it, and cannot tell an answer from other words
    program    text that Python parses, and that defines the record's entry point where it has one

A completion that cannot be read gets the mark of a wrong one; this tells the two apart.
"""

from __future__ import annotations

import ast

from lifecycle.rewards import math as formulas
from lifecycle.rewards.choice import final_choice
from lifecycle.rewards.number import final_number
from lifecycle.rewards.programs import code
from lifecycle.rewards.record import Answered
from lifecycle.rewards.stated import said


def choice(completion: str, record: Answered) -> float:
    """Of the reward `choice`."""
    return float(final_choice(completion, record.meta.get("options") or ()) is not None)


def number(completion: str, record: Answered) -> float:
    """Of the reward `number`."""
    return float(final_number(completion) is not None)


def math(completion: str, record: Answered) -> float:
    """Of the reward `math`."""
    return float(final_number(completion) is not None or bool(formulas.found(completion)))


def text(completion: str, record: Answered) -> float:
    """Of the reward `exact_match`."""
    return float(bool(said(completion)))


def program(completion: str, record: Answered) -> float:
    """Of the reward `code`."""
    try:
        tree = ast.parse(code.program(completion, record))
    except (SyntaxError, ValueError):  # as of a null character
        return 0.0
    wanted = record.meta.get("entry_point")
    named = {getattr(node, "name", None) for node in ast.walk(tree)}
    return float(bool(tree.body) and (not wanted or wanted in named))
