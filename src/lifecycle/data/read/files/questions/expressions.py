"""Small expressions that Python evaluates, for reinforcement learning: to be demonstrated, practised, and asked.

    demonstrations          few, with their answers: what a model is fine-tuned on first
    expressions             many others: prompts whose samples are graded by the known answer
    expressions_held_out    1,000 more: in neither of the two

All are `messages`, a question and its answer. Eight templates over three to six digits; the hash of a question says
whether it is held out, and none is asked twice.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterator, Mapping
from typing import Any

ROWS = {"demonstrations": 600, "expressions": 10_000, "expressions_held_out": 1000}
KINDS = tuple(ROWS)

HELD_OUT_IN = 3
"""One question in this many may be held out: the same that `python://questions` leaves to `python://preferences`."""

TEMPLATES = (
    "sorted({numbers})",
    "sorted({numbers}, reverse=True)",
    "{numbers}[::-1]",
    "{numbers}[1:]",
    "sum({numbers})",
    "max({numbers})",
    "min({numbers})",
    "len(set({numbers}))",
)
KNOWN = {"sorted": sorted, "sum": sum, "max": max, "min": min, "len": len, "set": set}


def expressions(kind: str, asked_elsewhere: Collection[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of `kind`. asked_elsewhere: questions that other data asks, none of which is held out."""
    draw = random.Random("expressions")
    seen: set[str] = set()
    made = dict.fromkeys(KINDS, 0)
    while made[kind] < ROWS[kind]:
        numbers = [draw.randint(0, 9) for _ in range(draw.randint(3, 6))]
        expression = draw.choice(TEMPLATES).format(numbers=numbers)
        question = f"What does Python give for `{expression}`?"
        of = _kind_of(question, made)
        if question in seen or (of == "expressions_held_out" and question in asked_elsewhere):
            continue
        seen.add(question)
        made[of] += 1
        if of == kind:
            answer = repr(eval(expression, {"__builtins__": KNOWN}))
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            yield {"id": f"{kind}/{made[kind]}", "messages": turns}


def _kind_of(question: str, made: Mapping[str, int]) -> str:
    """Held out by its hash; the first of the others are demonstrated."""
    if int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) % HELD_OUT_IN == 0:
        return "expressions_held_out"
    return "demonstrations" if made["demonstrations"] < ROWS["demonstrations"] else "expressions"
