"""A conversation as text by a chat template, and where in it every content stands.

Each content is replaced by a mark of private use and the template rendered with the marks: their places say where the
contents stand in the rendered text, which must be that of the contents themselves, letter for letter. So nothing is
found by searching for what a turn says, and a template that drops, repeats or changes a turn is found out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lifecycle.data.read.row import BadRow
from lifecycle.tokenizer.chat import ChatTemplate, Span, TemplateFault, Turn
from lifecycle.tokenizer.tokenizer import Tokenizer

THINK = re.compile(r"(\s*</?think>\s*)")
"""Tags that templates look for inside a content, so that no mark may stand in their place."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """turns: as a chat template takes them: role, content, tool_calls. tools: that the assistant may call, described as
    JSON schemas. first: number of the turn from which on the assistant's are trained."""

    turns: Sequence[Turn]
    tools: Sequence[Mapping[str, Any]] = ()
    first: int = 0


class Content(NamedTuple):
    """Where a part of what a turn says stands in the rendered text."""

    turn: int
    span: Span


class Rendering(NamedTuple):
    """The text of a conversation, where its contents stand, and what the template marks in it as the assistant's."""

    text: str
    contents: list[Content]
    marked: tuple[Span, ...] | None


def rendered(said: Conversation, tokenizer: Tokenizer, template: ChatTemplate, *, ask: bool = False) -> Rendering:
    """The text of a conversation; `ask`: with the beginning of the assistant's next turn. Raises BadRow for what the
    template refuses, drops, repeats or changes."""
    turns, tools = said.turns, said.tools
    _refuse_marks(said, tokenizer)
    try:
        whole = template.render(tokenizer.hf, turns, tools=tools, ask=ask)
        held, parts = _held(turns)
        frame = template.render(tokenizer.hf, held, tools=tools, ask=ask).text
    except TemplateFault as fault:
        raise BadRow(f"chat template: {fault}") from fault
    if tools and whole.text == again(replace(said, tools=()), tokenizer, template, ask=ask):
        raise BadRow("chat template: drops the tools")
    uncalled = replace(said, turns=[{**turn, "tool_calls": None} for turn in turns])
    called = any(turn.get("tool_calls") for turn in turns)
    if called and whole.text == again(uncalled, tokenizer, template, ask=ask):
        raise BadRow("chat template: drops a tool call")
    filled, contents = "", list[Content]()
    for turn, mark, part in parts:
        if frame.count(mark) != 1:
            raise BadRow("chat template: repeats or moves what a turn says" if mark in frame else _dropped(turns[turn]))
        before, _, frame = frame.partition(mark)
        contents.append(Content(turn, (len(filled) + len(before), len(filled) + len(before) + len(part))))
        filled += before + part
    if filled + frame != whole.text:
        raise BadRow("chat template: changes what a turn says")
    return Rendering(whole.text, contents, whole.marked)


def _dropped(turn: Turn) -> str:
    return f"chat template: drops what {'an' if turn['role'] == 'assistant' else 'a'} {turn['role']} turn says"


def again(said: Conversation, tokenizer: Tokenizer, template: ChatTemplate, *, ask: bool) -> str | None:
    """The text of a part of a conversation; None where the template refuses it."""
    try:
        return template.render(tokenizer.hf, said.turns, tools=said.tools, ask=ask).text
    except TemplateFault:  # so it is not the same text
        return None


def _refuse_marks(said: Conversation, tokenizer: Tokenizer) -> None:
    """Other values than content are written by the template itself, where text and marks could not be told apart."""
    others = [{key: value for key, value in turn.items() if key != "content"} for turn in said.turns]
    if not said.tools and all(set(other) == {"role"} for other in others):
        return
    written = json.dumps([others, list(said.tools)], ensure_ascii=False)
    if any(name in written for name in tokenizer.special_names.values()):
        raise BadRow("chat template: a tool or its call names a special token")


def _held(turns: Sequence[Turn]) -> tuple[list[Turn], list[tuple[int, str, str]]]:
    """The turns with marks in the place of contents, and of each mark its turn and what it stands for."""
    held, parts = list[Turn](), list[tuple[int, str, str]]()
    for index, turn in enumerate(turns):
        pieces = THINK.split(turn.get("content") or "")
        for n in range(0, len(pieces), 2):  # tags between them
            if pieces[n]:
                mark = f"\ue000{index}.{n}\ue001"
                parts.append((index, mark, pieces[n]))
                pieces[n] = mark
        held.append({**turn, "content": "".join(pieces)} if turn.get("content") else turn)
    return held, parts
