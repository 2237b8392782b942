"""Every link of a page leads to a file that is there, and to a heading that is there."""

import re
from pathlib import Path

import pytest
from tests.docs.pages import FENCE, PAGES, ROOT

LINK = re.compile(r"\[[^][]*\]\(([^()\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them: small letters, hyphens for spaces, no punctuation."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_of_docs_is_named_by_another() -> None:
    texts = {page: page.read_text() for page in PAGES}
    for page in (ROOT / "docs").glob("*.md"):
        assert any(page.name in text for other, text in texts.items() if other != page), page.name
