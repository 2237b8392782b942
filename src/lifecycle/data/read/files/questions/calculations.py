"""Questions that a calculator helps with, for reinforcement learning with tools: to be demonstrated, practised, asked.

    calculator_calls           few, with answers that call a calculator: what a model is fine-tuned on first
    calculations               many others, with the number alone: prompts whose samples are graded by it
    calculations_held_out      1,000 more: in neither of the two

All are `messages`, a question and its answer. A call is `<calc>37 * 46</calc>`, and what is answered stands behind it;
the number that it gives is said again on a line of its own. The hash of a question says whether it is held out, and
none is asked twice.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

ROWS = {"calculator_calls": 2000, "calculations": 10_000, "calculations_held_out": 1000}
KINDS = tuple(ROWS)
HELD_OUT_IN = 5
"""One question in this many may be held out."""

TEMPLATES = (
    ("What is {a} * {b}?", "{a} * {b}"),
    ("What is {a} * {b} + {c}?", "{a} * {b} + {c}"),
    ("What is {a} - {b} * {c}?", "{a} - {b} * {c}"),
    ("What is {a} + {b} * {c}?", "{a} + {b} * {c}"),
    ("What is {a} times {b}?", "{a} * {b}"),
    ("A box holds {a} pens. How many are in {b} boxes?", "{a} * {b}"),
    ("One pen costs {a} cents, a bag {c}. What do {b} pens in a bag cost?", "{a} * {b} + {c}"),
    ("Of {a} boxes of {b} pens, {c} pens are sold. How many are left?", "{a} * {b} - {c}"),
)


def calculations(kind: str) -> Iterator[Mapping[str, Any]]:
    """The rows of `kind`."""
    draw = random.Random("calculations")
    seen: set[str] = set()
    made = dict.fromkeys(KINDS, 0)
    while made[kind] < ROWS[kind]:
        asked, called = draw.choice(TEMPLATES)
        numbers = {letter: draw.randint(11, 99) for letter in "abc"}
        question, call = asked.format(**numbers), called.format(**numbers)
        of = _kind_of(question, made)
        if question in seen:
            continue
        seen.add(question)
        made[of] += 1
        if of == kind:
            number = str(eval(call, {"__builtins__": {}}))
            answer = f"<calc>{call}</calc> = {number}\n{number}" if kind == "calculator_calls" else number
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            yield {"id": f"{kind}/{made[kind]}", "messages": turns}


def _kind_of(question: str, made: Mapping[str, int]) -> str:
    """Held out by its hash; the first of the others are demonstrated."""
    if int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) % HELD_OUT_IN == 0:
        return "calculations_held_out"
    return "calculator_calls" if made["calculator_calls"] < ROWS["calculator_calls"] else "calculations"
