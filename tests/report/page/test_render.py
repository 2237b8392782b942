from html.parser import HTMLParser

from lifecycle.report.page.render import Code, Element, Heading, Paragraph, Picture, Sample, Sheet, to_html, to_markdown

HOSTILE = '<script>alert("x")</script> & `code` | ```fence```'


class Page(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "srcset", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_text_of_a_model_is_never_markup() -> None:
    page = Page(to_html(HOSTILE, [Sample(HOSTILE, HOSTILE, HOSTILE), Sheet((HOSTILE, ""), [(HOSTILE, "1")])], {}, {}))
    assert "script" not in page.tags
    assert page.words.count('alert("x")') >= 5


def test_a_page_needs_no_other_file() -> None:
    images = {"loss": b"png"}
    page = Page(to_html("run", [Picture("loss", "the loss")], images, images))
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "link" not in page.tags and "@import" not in page.words and "url(" not in page.words


def test_each_picture_has_both_modes_and_words() -> None:
    html = to_html("run", [Picture("loss", "the loss")], {"loss": b"light"}, {"loss": b"dark"})
    assert "prefers-color-scheme: dark" in html
    assert 'alt="the loss"' in html
    assert "bGlnaHQ=" in html and "ZGFyaw==" in html  # base64 of light and dark


def test_a_fence_is_longer_than_any_inside() -> None:
    text = to_markdown("run", [Code("a ```` b")], "report")
    assert "`````bash\na ```` b\n`````" in text


def test_a_table_cell_cannot_break_its_row() -> None:
    text = to_markdown("run", [Sheet(("a", "b"), [("x | y", "line one\nline two")])], "report")
    assert "| x \\| y | line one line two |" in text


def test_both_forms_say_the_same() -> None:
    blocks: list[Element] = [
        Heading("Part"),
        Paragraph("plain"),
        Paragraph("mind", "warning"),
        Sheet(("a", "b"), [("c", "d")]),
        Code("do"),
    ]
    markdown, page = to_markdown("run", blocks, "report"), Page(to_html("run", blocks, {}, {}))
    for word in ("Part", "plain", "mind", "a", "b", "c", "d", "do"):
        assert word in markdown and word in page.words
