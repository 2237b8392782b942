"""A conversation with a new answer, as another model reads it that has a tokenizer and a chat template of its own."""

from __future__ import annotations

from collections.abc import Sequence

from lifecycle.data.conversation.ids import encode_conversation, encode_whole
from lifecycle.data.conversation.rendering import Conversation
from lifecycle.data.read.row import BadRow
from lifecycle.tokenizer.chat import ChatTemplate, Turn
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
        return [int(i) for i in encode_conversation(answered, tokenizer, template).ids]
    except BadRow as bad:
        return bad.reason
