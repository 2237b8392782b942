"""The chat template of a run, and whether it can be trained with: said before a step, with what it makes of turns."""

from __future__ import annotations

from collections.abc import Sequence

from lifecycle.data.conversation.assistant import NO_STOP
from lifecycle.data.conversation.ids import encode_conversation
from lifecycle.data.conversation.rendering import Conversation, rendered
from lifecycle.data.read.row import BadRow
from lifecycle.errors import UserError
from lifecycle.tokenizer.chat import AUTO, ChatTemplate, TemplateFault, Turn, end_ids
from lifecycle.tokenizer.tokenizer import Tokenizer

TEXT, PROMPT = "text", "prompt"
"""The views that can do without a template."""

PROBE = ("user", "assistant", "user", "assistant")


def open_template(
    wanted: str, tokenizer: Tokenizer, *, view: str, begun: bool
) -> tuple[Tokenizer, ChatTemplate | None]:
    """The template of a run on `view`, and its tokenizer with that template, for what is exported is asked as it was
    taught.

    wanted: `data.chat_template`. begun: the tokenizer is that of a run which goes on, with the template that it began
    with. Raises UserError for a template that cannot be trained with, and for another one than the run began with.
    """
    if view == TEXT:
        return tokenizer, None
    template = ChatTemplate.of(wanted, tokenizer.hf)
    if template is None:
        if view != PROMPT:
            raise UserError(
                f"data.chat_template=none, but the stage trains on the view '{view}', which a chat template writes: "
                "give auto, chatml, plain or a Jinja file"
            )
        return tokenizer, None
    own = ChatTemplate.of(AUTO, tokenizer.hf)
    if begun and own and own.source != template.source:
        raise UserError(
            f"data.chat_template={wanted} writes turns in another way than the run began with, whose template is in "
            f"{tokenizer.hf.name_or_path}: put that in its place, or begin a new run (run=NAME)"
        )
    check_template(template, tokenizer)
    return tokenizer.with_template(template.source), template


def check_template(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Raise UserError for a template that no conversation can be trained with, showing what it makes of a short one."""
    turns = [{"role": role, "content": f"What {role} {n} says."} for n, role in enumerate(PROBE, 1)]
    try:
        if template.draws_by_chance:
            raise BadRow("chat template: draws by chance what it writes, so that no run could go on as it began")
        rendering = rendered(Conversation(turns=turns), tokenizer, template)
        spans = [content.span for content in rendering.contents]
        before_user, before_answer = (rendering.text[spans[n - 1][1] : spans[n][0]] for n in (2, 3))
        if before_user == before_answer:
            raise BadRow("chat template: drops the role of a turn")
        for said in (turns, turns[:3]):  # at the end, and where the user goes on: an answer has to stop in both
            encode_conversation(Conversation(turns=said), tokenizer, template)
    except BadRow as bad:
        raise UserError(_unfit(bad.reason, turns, template, tokenizer)) from bad


def _unfit(reason: str, turns: Sequence[Turn], template: ChatTemplate, tokenizer: Tokenizer) -> str:
    stops = end_ids(tokenizer.hf, tokenizer.eos_id, template)
    names = ", ".join(tokenizer.decode([i], specials=True) for i in stops)
    try:
        shown = f" Of four turns it makes:\n{template.render(tokenizer.hf, turns).text}\n"
    except TemplateFault as fault:
        reason, shown = f"an error: {fault}", " "
    wanted = f" (the tokenizer's are {names})" if reason == NO_STOP else ""
    return (
        f"{template.name} is of no use for training: {reason.removeprefix('chat template: ')}{wanted}."
        f"{shown}Choose data.chat_template=plain (turns in words, ended by the end-of-text "
        "token), chatml (for a tokenizer that has <|im_start|> and <|im_end|>), or a Jinja file of your own"
    )
