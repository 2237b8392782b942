"""The program of a worker whose graders are functions of the user's own, MODULE:FUNCTION.

They are the user's code, as a reward of another library is: they have the files, the network, the environment and the
packages of the run. What they share with other graders is that they run beside it, so that one that never returns, or
ends its process, is killed and counted, and the run goes on.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from lifecycle.rewards.pool.task import WorkerStart
from lifecycle.rewards.pool.worker import READ, WRITE, in_words, marked
from lifecycle.rewards.record import Answered, Grader
from lifecycle.rewards.sandbox import frames, kernel
from lifecycle.rewards.sandbox.limits import SandboxLimits
from lifecycle.system.foreign import users_own

ERRORS = 2
LARGEST = 1e30
"""Of a mark, and of minus a mark: marks are compared by their squares."""


def main() -> None:
    """Mark completions one after another, until the standard input ends."""
    start = WorkerStart(**json.loads(sys.argv[1]))
    kernel.die_with_parent(start.parent)
    asked, answers = os.dup(READ), os.dup(WRITE)
    os.dup2(os.open(os.devnull, os.O_RDONLY), READ)  # a function that waits for a key reads no message ...
    os.dup2(ERRORS, WRITE)  # ... and what it prints is none
    known = {name: own_grader(name) for name in start.graders}
    frames.write(answers, [])
    while True:
        try:
            name, completion, record = frames.read(asked)
        except EOFError:
            return
        found = marked(known[name], completion, Answered(**record), SandboxLimits(**start.limits), _with_place)
        sys.stdout.flush()
        frames.write(answers, found)


def _with_place(error: Exception) -> str:
    """What a function raised, with the line of its file."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return in_words(error) + ("" if place.filename == __file__ else f" ({place.filename}, line {place.lineno})")


def imported(name: str, where: str) -> Callable[..., Any]:
    """The user's function itself. Raises UserError where there is none."""
    function: Callable[..., Any] = users_own(name, where, what="function", example="my_rewards:polite")
    return function


def own_grader(name: str, where: str = "stage.rewards") -> Grader:
    """The user's function, whose mark is a number; None and NaN: there is none. Raises UserError where there is no such
    function; called, TypeError and ValueError for what is no mark."""
    function = imported(name, where)

    def grader(completion: str, record: Answered) -> float:
        mark = function(completion, record)
        if mark is None:
            return math.nan
        if isinstance(mark, str | bytes) or not hasattr(mark, "__float__"):
            raise TypeError(f"{name} returned {mark!r:.80}, wanted a number, or None for no mark")
        if abs(number := float(mark)) > LARGEST:  # not so NaN
            raise ValueError(f"{name} returned {number}, wanted a number of at most {LARGEST:g}, or None for no mark")
        return number

    return grader
