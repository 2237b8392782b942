"""Chat templates: which one a run uses, the text that it renders for some turns, and the tokens that end a completion.

    template = ChatTemplate.of("auto", tokenizer.hf)     the tokenizer's own, else ChatML
    template.render(tokenizer.hf, [{"role": "user", "content": "2+2?"}], ask=True).text

A template is untrusted code: `transformers` runs it in Jinja's immutable sandbox. It gets the same date every day
(`TODAY`), so that a row has the same tokens whenever it is read.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateSyntaxError

from lifecycle.errors import UserError
from lifecycle.system.foreign import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTENT = "\ue000"
"""A placeholder for the assistant's content: a private-use character, which no template contains."""

AUTO, NONE = "auto", "none"
SHIPPED = {"chatml": "ChatML", "plain": "the plain template"}
TRAINED_HERE = "turns"
"""The template of a tokenizer that is trained here."""

MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The mark in a template at which the assistant begins to write."""

CHANCE = re.compile(r"\|\s*random\b|\(\s*['\"]random['\"]|\blipsum\b")
"""Jinja functions and filters whose output is random."""

TODAY = {"%Y": "2025", "%m": "01", "%d": "01", "%b": "Jan", "%B": "January", "%y": "25", "%A": "Wednesday", "%a": "Wed"}
"""The date that templates get, by the format codes of Python's strftime."""

Turn = Mapping[str, Any]
Span = tuple[int, int]


class TemplateFault(Exception):
    """A chat template that raised an error over some turns; the text says which."""


class Rendered(NamedTuple):
    """The text of some turns. marked: (start, end), in characters, of what the template marks as written by the
    assistant; None for a template without marks."""

    text: str
    marked: tuple[Span, ...] | None


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """source: its Jinja text. name: what messages call it."""

    source: str
    name: str

    @classmethod
    def of(cls, wanted: str, hf: PreTrainedTokenizerFast) -> ChatTemplate | None:
        """The template that `data.chat_template` means: `auto` the tokenizer's own, or ChatML where it has none;
        `chatml`; `plain`; `none`; or a Jinja file. Raises UserError for a file that cannot be read."""
        if wanted == NONE:
            return None
        own = hf.chat_template
        if isinstance(own, Mapping):  # several by name
            own = own.get("default")
        if wanted == AUTO and own:
            return cls(source=str(own), name=f"the chat template of the tokenizer {hf.name_or_path}".rstrip())
        shipped = "chatml" if wanted == AUTO else wanted
        if shipped in SHIPPED:
            return cls(source=shipped_source(shipped), name=SHIPPED[shipped])
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise UserError(
                f"data.chat_template is {wanted!r}, and there is no such file; wanted auto (the tokenizer's own, else "
                "ChatML), chatml, plain, none (no template), or a Jinja file"
            )
        return cls(source=read_text(path), name=f"the chat template {wanted}")

    @property
    def sha256(self) -> str:
        """The hash of the template's text, which identifies it."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def has_markers(self) -> bool:
        """Whether it marks what the assistant wrote, by `{% generation %}`."""
        return MARKER.search(self.source) is not None

    @property
    def draws_by_chance(self) -> bool:
        """Whether its text for the same turns may be another one each time."""
        return CHANCE.search(self.source) is not None

    def render(
        self,
        hf: PreTrainedTokenizerFast,
        turns: Sequence[Turn],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        ask: bool = False,
    ) -> Rendered:
        """The text of `turns`; ask: with the generation prompt of the assistant's next turn. Raises TemplateFault where
        the template raises an error."""
        from transformers.utils.chat_template_utils import render_jinja_template  # here: as in `tokenizer.py`

        source = _same_date() + self.source if "strftime_now" in self.source else self.source
        marks: dict[str, Any] = hf.special_tokens_map
        try:
            rendered: Any = render_jinja_template(
                [[{key: value for key, value in turn.items() if value is not None} for turn in turns]],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=_of_thread() + source,
                return_assistant_tokens_mask=self.has_markers and not ask,
                add_generation_prompt=ask,
                **marks,
            )
        except Exception as error:  # untrusted code, which may raise anything
            line = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
            raise TemplateFault(line + (" ".join(str(error).split())[:120] or type(error).__name__)) from error
        texts, spans = rendered
        return Rendered(str(texts[0]), tuple((int(start), int(end)) for start, end in spans[0]) if spans else None)


def shipped_source(name: str) -> str:
    """The text of a template that we ship, which is whole in one: how tools are written stands in it too."""
    folder = files("lifecycle.tokenizer")
    return "".join(folder.joinpath(f"{part}.jinja").read_text(encoding="utf-8") for part in ("tools", name))


def _of_thread() -> str:
    """A comment that makes the text of a template another one in each thread. transformers compiles each text once a
    process, and stores the assistant's spans in the compiled object, which two threads must not do at the same time."""
    alone = threading.current_thread() is threading.main_thread()
    return "" if alone else f"{{# {threading.get_ident()} +#}}"


def _same_date() -> str:
    """A macro that replaces `strftime_now`. Its final `+` keeps the white space at the beginning of the template."""
    parts = "".join(f".replace('{name}', '{value}')" for name, value in TODAY.items())
    return "{%- macro strftime_now(format) -%}{{- format" + parts + " -}}{%- endmacro +%}"


def end_ids(hf: PreTrainedTokenizerFast, eos_id: int, template: ChatTemplate | None = None) -> tuple[int, ...]:
    """The ids that end a completion: `eos_id`, and the first special token that the template puts after a turn of the
    assistant. template: None for the tokenizer's own, if it has one."""
    template = template or (ChatTemplate.of(AUTO, hf) if hf.chat_template else None)
    if template is None:
        return (eos_id,)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": CONTENT}]
    try:
        behind = template.render(hf, turns).text.partition(CONTENT)[2]
    except TemplateFault:  # the template needs other turns than these: its marks are not known
        return (eos_id,)
    marks = {index for index, token in hf.added_tokens_decoder.items() if token.special}
    first = next((int(i) for i in hf(behind, add_special_tokens=False).input_ids if i in marks), eos_id)
    return tuple(dict.fromkeys((eos_id, first)))
