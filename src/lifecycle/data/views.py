"""Views: what a record becomes for the stage that trains on it.

    text         one document                                    Example    every token is trained
    chat         a conversation by a chat template               Example    what the assistant writes is trained
    preference   two answers to one prompt                       Pair       ... behind the prompt
    comparison   the same, each read to its very end             Pair       ... behind the prompt
    unpaired     an answer that is a good or a bad one           Example    ... behind the prompt, `wanted` says which
    prompt       a prompt, and what rewards need to know         Prompt

Each is a function `(Record, Tokenizer, template) -> Example | Pair | Prompt`, which raises BadRow for a record of which
it cannot make one; `VIEWS` has each of them for many records at once. template None: a model that has seen documents
only is asked with plain text, the beginning of what the view `text` makes of the record; the others need a template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lifecycle.batch import TRAINED_FROM, TURNS, Example, Item, Pair, Prompt, Record
from lifecycle.data.clean.filter_row import FilteredRow
from lifecycle.data.conversation.ids import encode_conversation, encode_prompt
from lifecycle.data.conversation.rendering import Conversation
from lifecycle.data.conversation.template_check import PROMPT, TEXT
from lifecycle.data.read.forms.preferences import SAME
from lifecycle.data.read.in_words import PLAIN, answered, as_text, question
from lifecycle.data.read.row import BadRow
from lifecycle.errors import UserError
from lifecycle.tokenizer.chat import ChatTemplate, Turn
from lifecycle.tokenizer.tokenizer import Tokenizer

ITEMS = {
    TEXT: "documents",
    "chat": "conversations",
    "preference": "pairs",
    "comparison": "pairs",
    "unpaired": "labelled answers",
    PROMPT: "prompts",
}
"""What the items of each view are called."""

View = Callable[[Sequence[Record], Tokenizer, ChatTemplate | None], list[Item | str]]
"""The item of each record, or the reason why there is none."""


def text(record: Record, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> Example:
    """The record as a document, between the marks of begin and end."""
    return Example(ids=tokenizer.documents([as_text(record)])[0])


def chat(record: Record, tokenizer: Tokenizer, template: ChatTemplate | None) -> Example:
    """The record as a conversation: trained is what the assistant writes, with the token that ends its turn; of a pair,
    the chosen answer."""
    prompt, said = turns_of(record)
    said = _turns(record.chosen) if record.chosen is not None else said
    if record.prompt is not None and not said:
        raise BadRow("no answer")
    # of a conversation without an answer set apart, every turn of the assistant is trained
    first = len(prompt) if said else record.meta.get(TRAINED_FROM, 0)
    whole = Conversation(turns=[*prompt, *said], tools=_tools(record), first=first)
    encoded = encode_conversation(whole, tokenizer, _needed(template))
    return Example(ids=encoded.ids, trained=encoded.trained)


def preference(record: Record, tokenizer: Tokenizer, template: ChatTemplate | None) -> Pair:
    """Both answers behind the same ids of the prompt."""
    prompt, _ = turns_of(record)
    sides = [
        Conversation(turns=[*prompt, *_turns(side)], tools=_tools(record), first=len(prompt))
        for side in (record.chosen, record.rejected)
    ]
    chosen, rejected = (encode_conversation(side, tokenizer, _needed(template)) for side in sides)
    asked = chosen.ids[: chosen.prompt_size]
    if rejected.prompt_size != chosen.prompt_size or (rejected.ids[: chosen.prompt_size] != asked).any():
        raise BadRow("chat template: writes the prompt in another way before the other answer")
    if np.array_equal(chosen.ids, rejected.ids):  # texts that differ in what the tokenizer makes one of
        raise BadRow(SAME)
    return Pair(
        prompt=asked,
        chosen=Example(ids=chosen.ids, trained=chosen.trained),
        rejected=Example(ids=rejected.ids, trained=rejected.trained),
        margin=record.meta.get("margin"),
    )


def comparison(record: Record, tokenizer: Tokenizer, template: ChatTemplate | None) -> Pair:
    """Both answers for who judges them whole. Of a sequence the last token is a label and no input: so one more stands
    behind the token that ends the answer, and the last position is that of this one."""
    pair = preference(record, tokenizer, template)
    return replace(pair, chosen=_read_whole(pair.chosen), rejected=_read_whole(pair.rejected))


def _read_whole(said: Example) -> Example:
    assert said.trained is not None
    return replace(said, ids=np.append(said.ids, said.ids[-1]), trained=np.append(said.trained, np.False_))


def unpaired(record: Record, tokenizer: Tokenizer, template: ChatTemplate | None) -> Example:
    """One answer, and whether it is a good one."""
    prompt, said = turns_of(record)
    whole = Conversation(turns=[*prompt, *said], tools=_tools(record), first=len(prompt))
    encoded = encode_conversation(whole, tokenizer, _needed(template))
    return Example(ids=encoded.ids, trained=encoded.trained, wanted=record.label)


def prompt(record: Record, tokenizer: Tokenizer, template: ChatTemplate | None, plain: str = PLAIN) -> Prompt:
    """The ids that a model is asked with, the known answer, and what the record says beside it."""
    turns = asked_of(record) if template is not None or record.text is None else []
    if template is None:
        ids = tokenizer.documents([question(record, plain)])[0][:-1]  # the document does not end there
    else:
        ids = encode_prompt(Conversation(turns=turns, tools=_tools(record)), tokenizer, template)
    return Prompt(id=record.id, ids=ids, answer=_known(record), meta={**record.meta, TURNS: turns})


def asked_of(record: Record) -> list[Turn]:
    """The turns before the last answer. Raises BadRow where there is none."""
    turns, said = turns_of(record)
    if not said and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if not turns:
        raise BadRow("no prompt before the answer")
    return turns


def _known(record: Record) -> str | None:
    """The answer that a reward compares with; None where there is none, and where there is a bad one."""
    return None if record.label is False else record.answer or answered(record) or None


def turns_of(record: Record) -> tuple[list[Turn], list[Turn]]:
    """The turns of the prompt, and those of the answer, as far as the record tells them apart."""
    before: list[Turn] = list(record.messages or [])
    if record.prompt is not None:
        before.append({"role": "user", "content": record.prompt.strip()})
    said = answered(record) if record.messages is None or record.completion is not None else None
    return before, _turns(said) if said else []


def _turns(said: Any) -> list[Turn]:
    return [{"role": "assistant", "content": said.strip()}] if isinstance(said, str) else list(said)


def _tools(record: Record) -> Sequence[Any]:
    return record.meta.get("tools") or ()


def _needed(template: ChatTemplate | None) -> ChatTemplate:
    if template is None:
        raise UserError(
            "data.chat_template=none, but this stage trains on conversations, which a chat template writes: give auto, "
            "chatml, plain or a Jinja file"
        )
    return template


def _each(view: Callable[[Record, Tokenizer, ChatTemplate | None], Item]) -> View:
    def many(records: Sequence[Record], tokenizer: Tokenizer, template: ChatTemplate | None) -> list[Item | str]:
        out: list[Item | str] = []
        for record in records:
            try:
                out.append(view(record, tokenizer, template))
            except BadRow as bad:
                out.append(bad.reason)
        return out

    return many


def _documents(records: Sequence[Record], tokenizer: Tokenizer, template: ChatTemplate | None) -> list[Item | str]:
    return [Example(ids=ids) for ids in tokenizer.documents([as_text(record) for record in records])]


VIEWS: dict[str, View] = {
    TEXT: _documents,
    "chat": _each(chat),
    "preference": _each(preference),
    "comparison": _each(comparison),
    "unpaired": _each(unpaired),
    PROMPT: _each(prompt),
}


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes items of `view` from rows under `tokenizer` and a chat template (plain: what a prompt is without one); it
    can be sent to other processes."""

    view: str
    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    plain: str = PLAIN

    def __call__(self, rows: Sequence[FilteredRow]) -> list[Item | str]:
        """The item of each row that passed the filters; in its place the reason why none can be made."""
        if self.view == TEXT:  # its text is there already, masked
            texts = [row.text for row in rows if row.text is not None]
            return [Example(ids=ids) for ids in self.tokenizer.documents(texts)]
        records = [row.record for row in rows if row.record is not None]
        view = _each(partial(prompt, plain=self.plain)) if self.view == PROMPT else VIEWS[self.view]
        return view(records, self.tokenizer, self.template)

    def in_view(self, view: str) -> Maker:
        """What makes items of another view; documents need no template."""
        return replace(self, view=view, template=None if view == TEXT else self.template)

    @property
    def key(self) -> str:
        """What the items depend on beside the rows and the tokenizer."""
        if self.template:
            return f"{self.view} {self.template.sha256}"
        return self.view if self.view != PROMPT or self.plain == PLAIN else f"{self.view} {self.plain}"
