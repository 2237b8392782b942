"""What the pages print: the lines of a shell, and Python.

commands()  ->  [Command("README.md", "lifecycle experiment=demo"), ...]      page by page, in the order of the text
blocks("docs/python.md")  ->  ["from lifecycle import config\\n...", ...]
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "conf").rglob("*.md"))]
LINE = re.compile(r"^    ((?:lifecycle|python|cp|cat|for|make|sh|source|[A-Z]+=\S+)(?: .*)?)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


class Command(NamedTuple):
    """A line that a page has people type; lines that go on are joined."""

    page: str
    line: str


def commands() -> list[Command]:
    """Every line of every page."""
    texts = {page: FENCE.sub("", page.read_text()).replace("\\\n", " ") for page in PAGES}
    return [
        Command(str(page.relative_to(ROOT)), line.rstrip())
        for page, text in texts.items()
        for line in LINE.findall(text)
    ]


def blocks(page: str) -> list[str]:
    """The Python that a page prints."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
