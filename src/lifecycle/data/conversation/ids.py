"""The ids of a conversation, and which of them are trained.

    encoded = encode_conversation(conversation, tokenizer, template)      encoded.ids, encoded.trained
    ids = encode_prompt(conversation, tokenizer, template)                the prompt of the assistant's next turn

The text is encoded in parts that begin where the assistant begins, so the ids of a prompt are the same in training and
in sampling. Names of special tokens inside a content are encoded as text, and end no turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lifecycle.batch import Ids
from lifecycle.data.conversation.assistant import Region, written
from lifecycle.data.conversation.rendering import Conversation, Rendering, rendered
from lifecycle.data.read.row import BadRow
from lifecycle.tokenizer.chat import ChatTemplate, end_ids
from lifecycle.tokenizer.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """ids: (n,) int32, up to the last trained one. trained: (n,) bool, which ids the assistant writes itself.
    prompt_size: number of ids before the first trained one."""

    ids: Ids
    trained: NDArray[np.bool_]
    prompt_size: int


class Part(NamedTuple):
    """Ids of the text from character `start` on. literal: whether it is a content that names special tokens, which are
    encoded as text."""

    start: int
    ids: list[int]
    literal: bool


def encode_conversation(conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate) -> Encoded:
    """The ids of a conversation; turns of the assistant from number `conversation.first` on are trained.

    Raises BadRow where nothing is trained, where the template refuses, changes or shortens the conversation, and where
    it puts no stop token after a turn of the assistant.
    """
    rendering = rendered(conversation, tokenizer, template)
    stops = _stops(tokenizer, template)
    names = [name for i in stops if (name := tokenizer.special_names.get(i))]
    regions = written(conversation, rendering, tokenizer, template, names)
    cuts = {cut for region in regions for cut in (region.start, *(() if region.stops else (region.end,)))}
    parts = _parts(rendering, cuts, tokenizer)
    ids = [one for part in parts for one in part.ids]
    trained = _trained(parts, regions, frozenset(stops))
    last = max(n for n, is_trained in enumerate(trained) if is_trained) + 1
    prompt_size = sum(len(part.ids) for part in parts if part.start < regions[0].start)
    return Encoded(np.array(ids[:last], np.int32), np.array(trained[:last]), prompt_size)


def encode_prompt(conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate) -> Ids:
    """(n,) int32: the ids of a conversation and of the beginning of the assistant's next turn. Raises BadRow where the
    template refuses, changes or shortens the conversation."""
    rendering = rendered(conversation, tokenizer, template, ask=True)
    return np.array([one for part in _parts(rendering, set(), tokenizer) for one in part.ids], np.int32)


def encode_whole(conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate) -> Ids:
    """(n,) int32: the ids of all that the template writes of a conversation. Raises BadRow as `encode_prompt` does."""
    rendering = rendered(conversation, tokenizer, template)
    return np.array([one for part in _parts(rendering, set(), tokenizer) for one in part.ids], np.int32)


def _stops(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """The ids of the tokens that end a turn; the tokenizer stores those of the run's own template."""
    own = tokenizer.hf.chat_template == template.source
    return tokenizer.end_ids if own else end_ids(tokenizer.hf, tokenizer.eos_id, template)


def _trained(parts: Sequence[Part], regions: Sequence[Region], stops: frozenset[int]) -> list[bool]:
    """Whether each id is trained: from a region's start to its stop token, or to its end where it has none."""
    begins = {region.start: region for region in regions}
    trained, now = list[bool](), None
    for part in parts:
        now = begins.get(part.start, now)
        if now is not None and not now.stops and part.start >= now.end:
            now = None
        for one in part.ids:
            trained.append(now is not None)
            if now is not None and now.stops and not part.literal and one in stops:
                now = None
    return trained


def _parts(rendering: Rendering, cuts: set[int], tokenizer: Tokenizer) -> list[Part]:
    """The ids of the text in parts: a new part begins at every cut, and before and after a content that names special
    tokens."""
    text = rendering.text
    special = tokenizer.special_names.values()
    literal = {span for _, span in rendering.contents if any(name in text[slice(*span)] for name in special)}
    edges = sorted({0, len(text), *cuts, *(edge for span in literal for edge in span)})
    out, before = list[Part](), list[int]()
    if literal and not tokenizer.joins_freely:
        raise BadRow("names a special token")
    for start, end in zip(edges, edges[1:], strict=False):
        is_text = any(begin <= start and end <= stop for begin, stop in literal)
        if is_text:
            ids = tokenizer.encode_batch([text[start:end]])[0].tolist()
        elif tokenizer.joins_freely:
            ids = tokenizer.encode_marked(text[start:end]).tolist()
        else:  # the ids at the beginning of a text depend on the text before it
            whole = tokenizer.encode_marked(text[:end]).tolist()
            if whole[: len(before)] != before:
                raise BadRow("a token reaches over the beginning of a turn")
            ids, before = whole[len(before) :], whole
        out.append(Part(start, ids, is_text))
    return out
