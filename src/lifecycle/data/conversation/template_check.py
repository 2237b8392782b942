"""Whether a chat template can be trained with, said before anything is read, with what it makes of a conversation."""

from __future__ import annotations

from collections.abc import Sequence

from lifecycle.data.conversation.assistant import NO_STOP
from lifecycle.data.conversation.ids import tell
from lifecycle.data.conversation.rendering import Conversation, rendered
from lifecycle.data.read.row import BadRow
from lifecycle.errors import UserError
from lifecycle.tokenizer.chat import ChatTemplate, TemplateFault, Turn, end_ids
from lifecycle.tokenizer.tokenizer import Tokenizer

PROBE = ("user", "assistant", "user", "assistant")


def check_template(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Raise UserError for a template that no conversation can be trained with, showing what it makes of a short one."""
    turns = [{"role": role, "content": f"What {role} {n} says."} for n, role in enumerate(PROBE, 1)]
    try:
        rendering = rendered(Conversation(turns=turns), tokenizer, template)
        spans = [content.span for content in rendering.contents]
        before_user, before_answer = (rendering.text[spans[n - 1][1] : spans[n][0]] for n in (2, 3))
        if before_user == before_answer:
            raise BadRow("chat template: drops the role of a turn")
        tell(Conversation(turns=turns), tokenizer, template)
    except BadRow as bad:
        raise UserError(_unfit(bad.reason, turns, template, tokenizer)) from bad


def _unfit(reason: str, turns: Sequence[Turn], template: ChatTemplate, tokenizer: Tokenizer) -> str:
    stops = end_ids(tokenizer.hf, tokenizer.eos_id, template)
    names = ", ".join(tokenizer.decode([i], specials=True) for i in stops)
    try:
        shown = template.render(tokenizer.hf, turns).text
    except TemplateFault as fault:
        shown = f"an error: {fault}"
    wanted = f" (the tokenizer's are {names})" if reason == NO_STOP else ""
    return (
        f"{template.name} is of no use for training: {reason.removeprefix('chat template: ')}{wanted}. "
        f"Of four turns it makes:\n{shown}\nChoose data.chat_template=plain (turns in words, ended by the end-of-text "
        "token), chatml (for a tokenizer that has <|im_start|> and <|im_end|>), or a Jinja file of your own"
    )
