r"""math: 1 where what a completion states as its answer equals the known one as mathematics, else 0.

    1/2 = 0.5 = \frac{1}{2}     (x+1)^2 = x^2+2x+1     \{1, 2\} = \{2, 1\}     x = 5 = 5     50% = 0.5

Stated is what `number` looks for; without such a mark it is the last formula or number of the text. What equals what is
math-verify's verdict, which rounds to six decimals. Its own time limits are signals, which work in the main thread
alone: they are off, since the pool that graders run in ends what takes too long.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import re
from collections.abc import Callable
from typing import Any

from lifecycle.errors import UserError
from lifecycle.rewards.number import number
from lifecycle.rewards.record import Answered
from lifecycle.rewards.stated import said, stated

DISPLAYED = re.compile(r"\\[()\[\]]")
DENIED = re.compile(r"\b(?:not|never|isn['\u2019]t|cannot)\b|\\neq?\b", re.IGNORECASE)
LONGEST = 500
"""Characters of a statement; longer ones are no answer to a problem that has one."""


def check_math() -> None:
    """Raise UserError where math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "the reward 'math' needs math-verify, which is not installed here: pip install 'lifecycle[math]', or take "
            "the reward 'number', which compares exact numbers"
        )


def math(completion: str, record: Answered) -> float:
    """The mark of a completion."""
    if number(completion, record):
        return 1.0
    stands = found(completion)
    if not stands:
        return 0.0
    parse, verify = load()
    wanted = parse(_as_formula(DISPLAYED.sub("$", record.answer)), parsing_timeout=None)
    return float(bool(wanted) and verify(wanted, stands, timeout_seconds=None))


def found(completion: str) -> list[Any]:
    """What math-verify reads where a completion states its answer; nothing where there is none to read."""
    text = DISPLAYED.sub("$", completion)
    statement, (parse, _) = stated(text), load()
    if statement is not None and (len(statement) > LONGEST or DENIED.search(statement)):
        return []
    return parse(said(text)[-LONGEST:] if statement is None else _as_formula(statement), parsing_timeout=None)


def _as_formula(text: str) -> str:
    return text if "$" in text else f"${text.strip().rstrip('.')}$"


@functools.cache
def load() -> tuple[Callable[..., list[Any]], Callable[..., bool]]:
    """math-verify's `parse` and `verify`, which take a second to import, and say no more that their limits are off."""
    check_math()
    from math_verify import parse, verify

    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return parse, verify
