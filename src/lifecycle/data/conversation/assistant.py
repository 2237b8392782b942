"""Which stretches of a rendered conversation the assistant writes itself, as positions in the text.

A stretch begins where the template marks it (`{% generation %}`), or where the generation prompt of the turn ends. It
includes the first stop token after it: a model that is never trained on a stop token does not stop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from lifecycle.data.conversation.rendering import THINK, Content, Conversation, Rendering, again
from lifecycle.data.read.row import BadRow
from lifecycle.tokenizer.chat import ChatTemplate
from lifecycle.tokenizer.tokenizer import Tokenizer

NO_STOP = "chat template: no stop token behind a turn of the assistant"


class Region(NamedTuple):
    """A stretch that the assistant writes, in characters: from `start` to `end` (exclusive). stops: whether the last
    token in it is a stop token."""

    start: int
    end: int
    stops: bool


def written(
    conversation: Conversation, rendering: Rendering, tokenizer: Tokenizer, template: ChatTemplate, names: Sequence[str]
) -> list[Region]:
    """The stretches that the assistant writes from turn `conversation.first` on. names: of the stop tokens. Raises
    BadRow where there is none, where its beginning cannot be found, or where no stop token follows."""
    turns, first = conversation.turns, conversation.first
    spoken = [n for n, turn in enumerate(turns) if turn["role"] == "assistant" and n >= first]
    if not spoken:
        raise BadRow("no turn of the assistant")
    if any(not turns[n].get("content") and not turns[n].get("tool_calls") for n in spoken):
        raise BadRow("a turn of the assistant is empty")
    text, size = rendering.text, len(rendering.text)
    if rendering.marked is None:
        starts = [_start(n, conversation, rendering, tokenizer, template) for n in spoken]
        spans = [(start, start) for start in starts]
        others = [_next_content(rendering, n) for n in spoken]
    else:
        border = _start(first, conversation, rendering, tokenizer, template) if first else 0
        spans = [(max(start, border), end) for start, end in rendering.marked if end > max(start, border)]
        others = [min((c.span[0] for c in rendering.contents if c.span[0] >= end), default=size) for _, end in spans]
    regions = list[Region]()
    for n, ((start, end), other) in enumerate(zip(spans, others, strict=True)):
        limit = min([other, *(later for later, _ in spans[n + 1 : n + 2])])
        stop = _stop(text, start, limit, rendering.contents, names)
        if stop is None and rendering.marked is None:
            raise BadRow(NO_STOP)
        regions.append(Region(start, stop or end, stop is not None))
    if not regions:
        raise BadRow("chat template: marks nothing as the assistant's")
    if not regions[-1].stops:
        raise BadRow(NO_STOP)
    return regions


def _start(
    turn: int, conversation: Conversation, rendering: Rendering, tokenizer: Tokenizer, template: ChatTemplate
) -> int:
    """The character at which the assistant begins to write a turn: the end of the generation prompt, or, where the
    template renders the turn with another beginning than its generation prompt, the beginning of its content."""
    before = replace(conversation, turns=conversation.turns[:turn])
    prompt = again(before, tokenizer, template, ask=True) if turn else None
    own = [content.span[0] for content in rendering.contents if content.turn == turn]
    if tag := THINK.match(conversation.turns[turn].get("content") or ""):  # the turn begins with reasoning
        own = [start - len(tag[0]) if rendering.text[:start].endswith(tag[0]) else start for start in own]
    if prompt and rendering.text.startswith(prompt) and len(prompt) <= min(own, default=len(prompt)):
        return len(prompt)
    if not own:
        raise BadRow("chat template: a tool call begins in another way than it is asked for")
    return own[0]


def _next_content(rendering: Rendering, turn: int) -> int:
    return min((c.span[0] for c in rendering.contents if c.turn > turn), default=len(rendering.text))


def _stop(text: str, start: int, limit: int, contents: Sequence[Content], names: Sequence[str]) -> int | None:
    """The end of the first stop token that the template itself wrote between `start` and `limit`; None without one."""
    if not names:
        return None
    for found in re.finditer("|".join(map(re.escape, names)), text[:limit]):
        inside = any(begin < found.end() and found.start() < end for _, (begin, end) in contents)
        if found.start() >= start and not inside:
            return found.end()
    return None
