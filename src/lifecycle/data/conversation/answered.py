"""A conversation with a new answer, as another model reads it that has a tokenizer and a chat template of its own."""

from __future__ import annotations

from collections.abc import Sequence

from lifecycle.data.conversation.ids import encode_conversation, encode_whole
from lifecycle.data.conversation.rendering import Conversation
from lifecycle.data.read.row import BadRow
from lifecycle.tokenizer.chat import ChatTemplate, Turn, end_ids
from lifecycle.tokenizer.tokenizer import Tokenizer


def answered_ids(
    turns: Sequence[Turn], text: str, whole: bool, *, tokenizer: Tokenizer, template: ChatTemplate
) -> list[int] | str:
    """The ids up to the token that ends the answer, as stage=reward trains on; whole: all that the template writes, as
    models from elsewhere are given. Or the reason why there are none."""
    answered = Conversation(turns=[*turns, {"role": "assistant", "content": text.strip()}], first=len(turns))
    try:
        if whole:
            return [int(i) for i in encode_whole(answered, tokenizer, template)]
        if text.strip():
            return [int(i) for i in encode_conversation(answered, tokenizer, template).ids]
        ids = [
            int(i) for i in encode_whole(answered, tokenizer, template)
        ]  # an answer of no token, which none trains on
        end = end_ids(tokenizer.hf, tokenizer.eos_id, template)[-1]
        return ids[: len(ids) - ids[::-1].index(end)] if end in ids else "its template does not end an empty answer"
    except BadRow as bad:
        return bad.reason
