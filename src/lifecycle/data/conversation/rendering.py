"""A conversation as text by a chat template, and where in it every content stands.

Each content is replaced by a placeholder of private-use characters, and the template is rendered once more with these.
Their places show where the contents stand in the text, which must be the same, character for character, once they are
filled in. So no content is searched for by its words, and a template that drops, repeats or changes a turn is detected.
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
"""Tags that templates look for inside a content: no placeholder may replace them."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """turns: as a chat template takes them: role, content, tool_calls. tools: that the assistant may call, described as
    JSON schemas. first: number of the turn from which on the assistant's are trained."""

    turns: Sequence[Turn]
    tools: Sequence[Mapping[str, Any]] = ()
    first: int = 0


class Content(NamedTuple):
    """(start, end) of a part of a turn's content in the rendered text, in characters."""

    turn: int
    span: Span


class Rendering(NamedTuple):
    """The text of a conversation, the places of its contents, and the spans that the template marks as written by the
    assistant (None: it marks none)."""

    text: str
    contents: list[Content]
    marked: tuple[Span, ...] | None


def rendered(
    conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate, *, ask: bool = False
) -> Rendering:
    """The text of a conversation; ask: with the generation prompt of the assistant's next turn. Raises BadRow where the
    template refuses the conversation, or drops, repeats or changes a part of it."""
    turns, tools = conversation.turns, conversation.tools
    _refuse_special_names(conversation, tokenizer)
    try:
        whole = template.render(tokenizer.hf, turns, tools=tools, ask=ask)
        marked, parts = _with_placeholders(turns)
        frame = template.render(tokenizer.hf, marked, tools=tools, ask=ask).text
    except TemplateFault as fault:
        raise BadRow(f"chat template: {fault}") from fault
    if tools and whole.text == again(replace(conversation, tools=()), tokenizer, template, ask=ask):
        raise BadRow("chat template: drops the tools")
    _refuse_lost_calls(conversation, tokenizer, template)
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


def _refuse_lost_calls(conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """Raise BadRow where the text lacks the name of a call, or one of its arguments: each is replaced by a word of its
    own, and these are looked for."""
    words, turns = list[str](), list[Turn]()
    for turn in conversation.turns:
        calls = []
        for call in turn.get("tool_calls") or []:
            name, key, value = (f"call{len(words) + n}of" for n in range(3))
            words += [name, key, value] if call["function"].get("arguments") else [name]
            arguments = {key: value} if call["function"].get("arguments") else {}
            calls.append({**call, "function": {**call["function"], "name": name, "arguments": arguments}})
        turns.append({**turn, "tool_calls": calls} if calls else turn)
    text = again(replace(conversation, turns=turns), tokenizer, template, ask=False) if words else ""
    if text is None or not all(word in text for word in words):
        raise BadRow("chat template: drops a tool call")


def again(conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate, *, ask: bool) -> str | None:
    """The text of a part of a conversation; None where the template refuses it."""
    try:
        return template.render(tokenizer.hf, conversation.turns, tools=conversation.tools, ask=ask).text
    except TemplateFault:  # so it is not the same text
        return None


def _refuse_special_names(conversation: Conversation, tokenizer: Tokenizer) -> None:
    """Raise BadRow for a tool or a call that names a special token: the template writes such values itself, and in its
    text the name would be encoded as the token."""
    others = [{key: value for key, value in turn.items() if key != "content"} for turn in conversation.turns]
    if not conversation.tools and all(set(other) == {"role"} for other in others):
        return
    written = json.dumps([others, list(conversation.tools)], ensure_ascii=False)
    if any(name in written for name in tokenizer.special_names.values()):
        raise BadRow("chat template: a tool or its call names a special token")


def _with_placeholders(turns: Sequence[Turn]) -> tuple[list[Turn], list[tuple[int, str, str]]]:
    """The turns with placeholders for their contents; and for each placeholder (turn, placeholder, content)."""
    marked, parts = list[Turn](), list[tuple[int, str, str]]()
    for index, turn in enumerate(turns):
        pieces = THINK.split(turn.get("content") or "")
        for n in range(0, len(pieces), 2):  # tags between them
            if pieces[n]:
                mark = f"\ue000{index}.{n}\ue001"
                parts.append((index, mark, pieces[n]))
                pieces[n] = mark
        marked.append({**turn, "content": "".join(pieces)} if turn.get("content") else turn)
    return marked, parts
