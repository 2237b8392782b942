"""Rows of preference data: pairs, pairs with scores, single answers labelled good or bad."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from lifecycle.data.read.forms.fields import Fields
from lifecycle.data.read.forms.turns import Turn, answer_turns, checked_answer, read_turn, read_turns, turns_in
from lifecycle.data.read.row import BadRow

SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
"""The speaker's name before each turn, where a conversation is one text, as in hh-rlhf."""

NEAR_TIE, SAME = "near tie", "both answers are the same"
"""Reasons why a pair is left out though its row is not broken."""


def preference(row: Fields) -> dict[str, Any]:
    """A pair: the better answer and the worse one. In a row without a prompt field, the prompt is the common beginning
    of the two conversations."""
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

    The margin is the difference of the scores; of a preference p, that of the shares of the annotators: |2 p - 3|.
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
    """An answer labelled good or bad: the last turn of a conversation, or a prompt's completion."""
    label = row.required("label")
    if not isinstance(label, int | float):
        raise BadRow(f"wrong type of {row.name('label')}: {type(label).__name__}")
    if label not in (0, 1):
        raise BadRow(f"{row.name('label')} is neither true nor false, 1 nor 0")
    if row.look("messages") is not None:
        turns = read_turns(row.required("messages"), row.name("messages"))
        if turns[-1]["role"] != "assistant" or len(turns) < 2:
            raise BadRow("no answer at the end")
        before, completion = turns[:-1], str(turns[-1]["content"])
    else:
        before, said = _prompt(row), answer_turns(row, "completion")
        if len(said) > 1:
            raise BadRow(f"{row.name('completion')} has several turns: one answer is labelled")
        completion = str(said[0]["content"])
    if not before:
        raise BadRow(f"missing field {row.name('prompt')}")
    if not completion:
        raise BadRow("empty")
    return {"messages": before, "completion": completion, "label": bool(label)}


def _pair(row: Fields, before: list[Turn], sides: list[list[Turn]], margin: float | None) -> dict[str, Any]:
    if not before:
        raise BadRow("no prompt: the two answers begin with nothing in common")
    for side in sides:
        checked_answer(side)
    if sides[0] == sides[1]:
        raise BadRow(SAME)
    return {
        "messages": before,
        "chosen": sides[0],
        "rejected": sides[1],
        **({"meta": {"margin": margin}} if margin is not None else {}),
    }


def _prompt(row: Fields) -> list[Turn]:
    """The turns before the answers; a plain text is a turn of the user, followed by `input` where a row has it."""
    system = row.text_if_named("system")
    before = [{"role": "system", "content": system}] if system else []
    value = row.look("prompt")
    if value is None:
        return before
    if isinstance(value, str):
        value = turns_in(value) or value
    if isinstance(value, str):
        text = "\n\n".join(filter(None, (row.text("prompt"), row.text_if_there("input"))))
        turns = _turns_of_text(text) if SPEAKER.match(text) else None
        return [*before, *(turns or [{"role": "user", "content": text}])]
    return [*before, *read_turns(value, row.name("prompt"))]


def _side(row: Fields, key: str, *, alone: bool) -> list[Turn]:
    """An answer: a text, a turn, or several turns. alone: the field holds the whole conversation, prompt included."""
    value = row.required(key)
    if isinstance(value, str):
        value = turns_in(value) or value
    if isinstance(value, str):
        if alone:
            return _turns_of_text(row.text(key, strip=False))
        return [{"role": "assistant", "content": row.text(key)}]
    turns = [read_turn(value)] if isinstance(value, Mapping) else read_turns(value, row.name(key))
    before = _prompt(row)
    # some sets repeat the prompt in both answers
    return turns[len(before) :] if before and turns[: len(before)] == before else turns


def _turns_of_text(text: str) -> list[Turn]:
    """The turns of a conversation that is one text with the speaker's name before each turn."""
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
