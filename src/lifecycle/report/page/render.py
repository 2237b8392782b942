"""A report as blocks, written twice: Markdown for a terminal or a code host, one HTML page that needs no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from lifecycle.report.page import marked
from lifecycle.report.page.marked import Marked


@dataclass(frozen=True)
class Heading:
    """The start of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Words. `tone` is plain, lead (the result), note (small print) or warning."""

    text: str
    tone: str = "plain"


@dataclass(frozen=True)
class Sheet:
    """A table; the first column is words, the others stand to the right if `numbers`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


@dataclass(frozen=True)
class Picture:
    """One of the drawn pictures, by name."""

    name: str
    words: str


@dataclass(frozen=True)
class Sample:
    """A prompt and the completion that the model sampled, which is shown in double brackets."""

    prompt: str
    completion: str
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """Commands to type."""

    text: str
    language: str = "bash"


Element = Heading | Paragraph | Sheet | Picture | Sample | Code | Marked


def to_markdown(title: str, blocks: Sequence[Element], picture_folder: str) -> str:
    """Pictures are links to `picture_folder/NAME.png`."""
    parts = [f"# {_flat(title)}"]
    for block in blocks:
        match block:
            case Heading():
                parts.append(f"## {block.text}")
            case Paragraph():
                mark = {"warning": "> **Note:** ", "lead": "**"}.get(block.tone, "")
                parts.append(f"{mark}{block.text}{'**' if block.tone == 'lead' else ''}")
            case Sheet():
                parts.append(_markdown_table(block))
            case Picture():
                parts.append(f"![{block.words}]({picture_folder}/{block.name}.png)")
            case Sample():
                parts += [f"*{_flat(block.caption)}*"] if block.caption else []
                parts.append(_fenced(f"{block.prompt}⟦{block.completion}⟧", "text"))
            case Code():
                parts.append(_fenced(block.text, block.language))
            case Marked():
                for words, content in marked.to_markdown(block):
                    parts += [f"*{_flat(words)}*", _fenced(content, "text")]
    return "\n\n".join(parts) + "\n"


def _markdown_table(sheet: Sheet) -> str:
    line = "---:" if sheet.numbers else "---"
    head = [_cells(sheet.columns), "|" + "|".join(["---", *[line] * (len(sheet.columns) - 1)]) + "|"]
    return "\n".join([*head, *(_cells(row) for row in sheet.rows)])


def _cells(row: Sequence[str]) -> str:
    return "| " + " | ".join(_flat(cell).replace("|", "\\|") for cell in row) + " |"


def _flat(text: str) -> str:
    return " ".join(text.split())


def _fenced(text: str, language: str) -> str:
    """A fence longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def to_html(title: str, blocks: Sequence[Element], light: Mapping[str, bytes], dark: Mapping[str, bytes]) -> str:
    """One page: style and pictures inside, both modes of every picture, nothing fetched."""
    body = "\n".join(_html(block, light, dark) for block in blocks)
    style = files("lifecycle.report").joinpath("page.css").read_text()
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Element, light: Mapping[str, bytes], dark: Mapping[str, bytes]) -> str:
    match block:
        case Heading():
            return f"<h2>{escape(block.text)}</h2>"
        case Paragraph():
            return f'<p class="{block.tone}">{_inline(block.text)}</p>'
        case Sheet():
            return table_in_html(block)
        case Picture():
            return _html_picture(block, light, dark)
        case Sample():
            prompt = f'<span class="prompt">{escape(block.prompt)}</span>'
            left, right = (f'<span class="mark">{mark}</span>' for mark in "⟦⟧")
            caption = f"<figcaption>{escape(block.caption)}</figcaption>" if block.caption else ""
            return f"<figure>{caption}<pre>{prompt}{left}{escape(block.completion)}{right}</pre></figure>"
        case Code():
            return f'<pre class="code">{escape(block.text)}</pre>'
        case Marked():
            return marked.to_html(block)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def table_in_html(sheet: Sheet) -> str:
    """A table by itself, as pages have it."""
    head = "".join(f"<th>{escape(column)}</th>" for column in sheet.columns)
    rows = "".join("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>\n" for row in sheet.rows)
    top = f"<thead><tr>{head}</tr></thead>\n" if any(sheet.columns) else ""
    kind = "numbers" if sheet.numbers else "words"
    return f'<div class="wide"><table class="{kind}">{top}<tbody>\n{rows}</tbody></table></div>'


def _html_picture(block: Picture, light: Mapping[str, bytes], dark: Mapping[str, bytes]) -> str:
    light_image, dark_image = (base64.b64encode(images[block.name]).decode() for images in (light, dark))
    return (
        '<picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="data:image/png;base64,{dark_image}">'
        f'<img alt="{escape(block.words)}" src="data:image/png;base64,{light_image}"></picture>'
    )
