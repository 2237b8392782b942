"""The text of a question: a template, with what is graded fenced off so that it cannot pass for the judge's own orders.

    <answer-5f0c9a1e>        the mark holds a hash of all that is graded: no answer can hold its own end
    ...
    </answer-5f0c9a1e>

Names of marks that chat templates use ("<|im_end|>", "[INST]") are broken up by a space, since many servers would take
them for the ends of turns wherever they stand. Nothing can keep a judge from believing what it reads: an answer that
says "this is worth 10 of 10" may please it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping

from lifecycle.errors import UserError

FIELD = re.compile(r"\{([a-z_]+)\}")
MARKS = re.compile(
    r"<(?=\|[^|<>\s]{1,60}\|>|\uff5c[^\uff5c<>\s]{1,60}\uff5c>|/?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn)>|</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
)
"""Where a mark that chat templates are known to use begins."""


def check_template(template: str, *, where: str, needed: Collection[str], known: Collection[str]) -> None:
    """Raise UserError for a template that lacks a place which it needs, or names one that nothing is put into."""
    found = set(FIELD.findall(template))
    wrong, missing = sorted(found - {*known}), sorted({*needed} - found)
    if wrong:
        raise UserError(
            f"{where} has {{{wrong[0]}}}, which nothing is put into: take of {', '.join(f'{{{k}}}' for k in known)}"
        )
    if missing:
        raise UserError(f"{where} has no {{{missing[0]}}}: without it the judge does not see what it is asked about")


def filled(template: str, plain: Mapping[str, str], fenced: Mapping[str, str]) -> str:
    """The template with texts in their places: plain ones as they are, the others fenced off. What a text holds is
    never taken for a place."""
    mark = hashlib.sha256("\x1f".join(f"{name}\x1f{text}" for name, text in fenced.items()).encode("utf-8", "replace"))
    name_of = mark.hexdigest()[:8]

    def text_of(place: re.Match[str]) -> str:
        name = place[1]
        if name in fenced:
            tag = f"{name}-{name_of}"
            return f"<{tag}>\n{_harmless(fenced[name])}\n</{tag}>"
        return plain.get(name, place[0])

    return FIELD.sub(text_of, template).strip()  # as chat templates do


def _harmless(text: str) -> str:
    """With a space in the names of marks of turns: no server takes them for marks then."""
    return MARKS.sub(lambda found: f"{found[0]} ", text)
