"""Laws of marked tokens: each is shown once, and what is trained is told from the rest with colours and without."""

import io

from rich.console import Console

from lifecycle.report.page.marked import Marked, show, to_html, to_markdown

ASKED = {"name": "prompt", "tokens": [["<|user|>", False], ["\n", False], ["2+2?", False]], "more": 0}
CHOSEN = {"name": "chosen", "tokens": [["It is", True], [" 4<b>", True], ["<|end|>", True]], "more": 0}
REJECTED = {"name": "rejected", "tokens": [["5", True], ["<|end|>", True]], "more": 0}
PAIR = Marked("mine, row 3", [ASKED, CHOSEN, REJECTED], {"margin": "2"})


def printed(block: Marked, colours: bool) -> str:
    out = io.StringIO()
    show([block], Console(file=out, width=60, force_terminal=colours, color_system="standard" if colours else None))
    return out.getvalue()


def test_markdown_puts_what_is_trained_between_brackets() -> None:
    assert list(to_markdown(PAIR)) == [
        ("mine, row 3: prompt", "<|user|>\n2+2?"),
        ("mine, row 3: chosen", "⟦It is 4<b><|end|>⟧"),
        ("mine, row 3: rejected", "⟦5<|end|>⟧\nmargin: 2"),
    ]


def test_a_page_marks_every_trained_token_and_escapes_it() -> None:
    page = to_html(PAIR)
    assert "<mark>It is</mark><mark> 4&lt;b&gt;</mark><mark>&lt;|end|&gt;</mark>" in page
    assert page.count("<mark>") == 5 and page.count("<span>") == 3 and "<span>↵\n</span>" in page
    assert '<div class="sides">' in page and "<dt>margin</dt><dd>2</dd>" in page
    assert "sides" not in to_html(Marked("x", [ASKED], {}))


def test_a_terminal_without_colours_has_brackets_and_sides_stand_beside_each_other() -> None:
    plain = printed(PAIR, colours=False)
    (line,) = (line for line in plain.splitlines() if "It is 4" in line)
    assert "⟦It is 4<b><|end|>⟧" in line and "⟦5<|end|>⟧" in line
    assert "\x1b" not in plain and "margin: 2" in plain
    coloured = printed(PAIR, colours=True)
    assert "⟦" not in coloured and "\x1b[1;32mIt is" in coloured and "\x1b[2m<|user|>" in coloured
