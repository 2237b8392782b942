"""Rows with answers that were judged: pairs, pairs with scores, single answers called good or bad."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from lifecycle.data.read.forms.fields import Fields
from lifecycle.data.read.forms.turns import Turn, read_turn, read_turns
from lifecycle.data.read.row import BadRow

SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
"""Who speaks in a conversation that is one text, as in hh-rlhf."""

NEAR_TIE, SAME = "near tie", "both answers are the same"
"""Reasons why a pair is left out though its row is not broken."""


def preference(row: Fields) -> dict[str, Any]:
    """The better answer and the worse one. Without a prompt of its own it is what both conversations begin with."""
    before = _prompt(row)
    sides = [_side(row, key, alone=not before) for key in ("chosen", "rejected")]
    if not before:
        shared = len(list(takewhile(lambda both: both[0] == both[1], zip(*sides, strict=False))))
        while shared and shared == min(map(len, sides)):  # one goes on where the other ends: an answer must be left
            shared -= 1
        before, sides = sides[0][:shared], [side[shared:] for side in sides]
    return _pair(row, before, sides, row.number("margin") if "margin" in row.names else None)


def scored_pairs(row: Fields) -> dict[str, Any]:
    """Two answers with a score each, or with a `preference` from 1 (the first is better) to 2; a near tie is left out.

    The margin is the difference of the scores; of a preference, that of the shares of judges: |2 p - 3|.
    """
    first, second = row.number("score_1"), row.number("score_2")
    if (preferred := row.number("preference")) is not None:
        if not 1 <= preferred <= 2:
            raise BadRow(f"{row.name('preference')} is not between 1 and 2")
        first, second = 2 - preferred, preferred - 1
    if first is None or second is None:
        raise BadRow(f"missing field {row.name('preference')}, or {row.name('score_1')} and {row.name('score_2')}")
    if abs(first - second) <= row.tie_margin:
        raise BadRow(NEAR_TIE)
    sides = [_side(row, key, alone=False) for key in ("response_1", "response_2")]
    return _pair(row, _prompt(row), sides if first > second else sides[::-1], abs(first - second))


def unpaired(row: Fields) -> dict[str, Any]:
    """A conversation whose last turn is good or bad, or a prompt and a completion that is."""
    label = row.required("label")
    if not isinstance(label, int | float):
        raise BadRow(f"wrong type of {row.name('label')}: {type(label).__name__}")
    if label not in (0, 1):
        raise BadRow(f"{row.name('label')} is neither true nor false, 1 nor 0")
    if row.look("messages") is not None:
        turns = read_turns(row.required("messages"), row.name("messages"))
        if turns[-1]["role"] != "assistant" or len(turns) < 2:
            raise BadRow("no answer at the end")
        before, said = turns[:-1], str(turns[-1]["content"])
    else:
        before, said = _prompt(row), row.text("completion")
    if not before:
        raise BadRow(f"missing field {row.name('prompt')}")
    if not said:
        raise BadRow("empty")
    return {"messages": before, "completion": said, "label": bool(label)}


def _pair(row: Fields, before: list[Turn], sides: list[list[Turn]], margin: float | None) -> dict[str, Any]:
    if not before:
        raise BadRow("no prompt: the two answers begin with nothing in common")
    for side in sides:
        if any(side[n]["role"] != "assistant" for n in (0, -1)):
            raise BadRow("an answer that is no turn of the assistant")
    if sides[0] == sides[1]:
        raise BadRow(SAME)
    return {
        "messages": before,
        "chosen": sides[0],
        "rejected": sides[1],
        **({"meta": {"margin": margin}} if margin is not None else {}),
    }


def _prompt(row: Fields) -> list[Turn]:
    """The turns before the answers: a text is the user's, with `input` behind it where there is one."""
    said = row.text_if_named("system")
    before = [{"role": "system", "content": said}] if said else []
    value = row.look("prompt")
    if value is None:
        return before
    if isinstance(value, str):
        asked = "\n\n".join(filter(None, (row.text("prompt"), row.text_if_there("input"))))
        told = _spoken(asked) if SPEAKER.match(asked) else None
        return [*before, *(told or [{"role": "user", "content": asked}])]
    return [*before, *read_turns(value, row.name("prompt"))]


def _side(row: Fields, key: str, *, alone: bool) -> list[Turn]:
    """An answer: a text, a turn, or turns. alone: the whole conversation, which the prompt is a part of."""
    value = row.required(key)
    if isinstance(value, str):
        return _spoken(row.text(key, strip=False)) if alone else [{"role": "assistant", "content": row.text(key)}]
    turns = [read_turn(value)] if isinstance(value, Mapping) else read_turns(value, row.name(key))
    before = _prompt(row)
    # some sets repeat the prompt in both answers
    return turns[len(before) :] if before and turns[: len(before)] == before else turns


def _spoken(text: str) -> list[Turn]:
    """The turns of a conversation that is one text."""
    marks = list(SPEAKER.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise BadRow("no prompt: a plain text where Human: and Assistant: were wanted, or a field `prompt`")
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]
    if not turns[-1]["content"] and turns[-1]["role"] == "assistant" and len(turns) > 1:
        raise BadRow("empty")
    return turns
