r"""code: 1 where the program in a completion passes all tests of its record, else 0.

The program is the last fenced block of Python behind the thoughts, the one that defines the entry point where there are
several; without a fence, all of the text. Where the meta has a `begun` program, the completion goes on with it.
Tests: `tests` (and `setup`, `entry_point`), or `inputs` with their `outputs`.
"""

from __future__ import annotations

import re

from lifecycle.rewards.programs import zygote
from lifecycle.rewards.programs.judge import Tests, passes
from lifecycle.rewards.record import Answered
from lifecycle.rewards.stated import ANSWER_BEGIN, ANSWER_END, THOUGHTS_BEGIN, THOUGHTS_END

FENCE = re.compile(r"^```[^\S\n]*([\w+\-.]*)[^\n]*\n(.*?)(?:^```|\Z)", re.MULTILINE | re.DOTALL)
LANGUAGES = ("", "python", "py", "python3")


def code(completion: str, record: Answered) -> float:
    """The mark of a completion. In a worker of a pool alone."""
    meta = record.meta
    tests = Tests(
        setup=meta.get("setup") or "",
        asserts=meta.get("tests") or (),
        entry_point=meta.get("entry_point") or "",
        inputs=meta.get("inputs") or (),
        outputs=meta.get("outputs") or (),
    )
    return float(passes(program(completion, record), tests, zygote.here()))


def program(completion: str, record: Answered) -> str:
    """What of a completion is to be executed."""
    text = _behind(completion)
    blocks = [found[2] for found in FENCE.finditer(text) if found[1].lower() in LANGUAGES]
    wanted = record.meta.get("entry_point")
    defining = [
        block for block in blocks if wanted and re.search(rf"^(?:def|class)\s+{re.escape(wanted)}\b", block, re.M)
    ]
    written = (defining or blocks or [text])[-1]
    begun = record.meta.get("begun") or ""
    return f"{begun}{'' if written[:1].isspace() else chr(10)}{written}" if begun else written


def _behind(completion: str) -> str:
    """The completion without thoughts and tags, but with the spaces that it begins with, which mean something."""
    _, end, rest = completion.rpartition(THOUGHTS_END)
    rest = rest if end else completion
    if THOUGHTS_BEGIN in rest:
        return ""
    _, begin, inside = rest.rpartition(ANSWER_BEGIN)
    return inside.partition(ANSWER_END)[0] if begin else rest
