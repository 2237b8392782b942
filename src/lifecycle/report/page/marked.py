"""Tokens with the trained ones marked: in a terminal by colours, in a page too, in Markdown between brackets.

A pair's two answers stand side by side where there is room: in a terminal and in a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

TRAINED, SHOWN = ("bold green", "green underline"), ("dim", "dim underline")
"""Styles of tokens, used in turn, so that neighbouring tokens look different."""

LEFT, RIGHT = "⟦⟧"
"""Around what is trained, where there are no colours."""

Token = Sequence[Any]
Part = Mapping[str, Any]


@dataclass(frozen=True)
class Marked:
    """parts: stretches of tokens, [text, trained] each, with a name; the last two of three stand side by side. facts:
    further values of the item, by name."""

    caption: str
    parts: Sequence[Part]
    facts: Mapping[str, str]


def to_html(block: Marked) -> str:
    """A figure; a token is a span, which is marked where it is trained."""
    drawn = [_html_part(part) for part in block.parts]
    if len(drawn) == 3:
        drawn = [drawn[0], f'<div class="sides">{drawn[1]}{drawn[2]}</div>']
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in block.facts.items())
    values = f"<dl>{facts}</dl>" if facts else ""
    return f'<figure class="tokens"><figcaption>{escape(block.caption)}</figcaption>{"".join(drawn)}{values}</figure>'


def _html_part(part: Part) -> str:
    spans = "".join(
        f"<{'mark' if trained else 'span'}>{escape(_visible(text))}</{'mark' if trained else 'span'}>"
        for text, trained in part["tokens"]
    )
    name = f"<b>{escape(part['name'])}</b>" if part["name"] else ""
    return f"<div>{name}<pre>{spans}</pre></div>"


def to_markdown(block: Marked) -> Iterator[tuple[str, str]]:
    """(words, content of a fence) of each part."""
    for n, part in enumerate(block.parts):
        runs = [
            ("".join(text for text, _ in run), trained) for trained, run in groupby(part["tokens"], lambda one: one[1])
        ]
        text_of_part = "".join(f"{LEFT}{text}{RIGHT}" if trained else text for text, trained in runs)
        facts = "".join(f"\n{key}: {value}" for key, value in block.facts.items())
        last = n + 1 == len(block.parts)
        yield ": ".join(filter(None, [block.caption, part["name"]])), text_of_part + (facts if last else "")


def show(blocks: Sequence[Marked], console: Console) -> None:
    """Each block in a terminal, by colours; where there are none, between brackets."""
    for block in blocks:
        console.print(_terminal(block, colours=console.color_system is not None))


def _terminal(block: Marked, *, colours: bool) -> RenderableType:
    drawn: list[RenderableType] = [_terminal_part(part, colours) for part in block.parts]
    if len(drawn) == 3:
        sides = Table.grid(expand=True, padding=(0, 1))
        sides.add_column(ratio=1)
        sides.add_column(ratio=1)
        sides.add_row(*drawn[1:])
        drawn = [drawn[0], sides]
    if block.facts:
        drawn.append(Columns([Text(f"{key}: {value}") for key, value in block.facts.items()], padding=(0, 3)))
    return Panel(Group(*drawn), title=Text(block.caption), title_align="left", border_style="dim")


def _terminal_part(part: Part, colours: bool) -> Text:
    text = Text(f"{part['name']}\n" if part["name"] else "", style="")
    if part["name"]:
        text.stylize("bold")
    if not colours:
        return text.append_text(Text(next(iter(to_markdown(Marked("", [part], {}))))[1]))
    for n, (token, trained) in enumerate(part["tokens"]):
        text.append(_visible(token), style=(TRAINED if trained else SHOWN)[n % 2])
    return text


def _visible(token: str) -> str:
    """A token with its line breaks to be seen: whether they are trained matters."""
    return token.replace("\n", "↵\n")
