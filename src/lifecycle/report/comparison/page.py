"""The page on several runs: comparison.md (its pictures beside it) and comparison.html (whole in itself).

A cell's change is against the domain's first known value: what the first run with that domain began with, else what it
ended with. Of several seeds a cell has mean and standard deviation; of one run's share the 95 % interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib import rc_context
from matplotlib.figure import Figure

from lifecycle.report.comparison.picture import cell, domains_of, first_values, matrix, measures_of, named, panels
from lifecycle.report.comparison.recipes import UNITS, HeldOutMeasure, Recipe, compare
from lifecycle.report.page.canvas import DARK, LIGHT, Theme, png, style
from lifecycle.report.page.format import count, number, share, span
from lifecycle.report.page.render import Element, Paragraph, Picture, Sheet, to_html, to_markdown
from lifecycle.system import atomic

PICTURES: dict[str, Callable[[Sequence[Recipe], Theme], Figure | None]] = {"perplexity": matrix, "measures": panels}
MEASURED = (
    "What else was measured on held-out data at the end of each run. Brackets hold the 95 % interval (Wilson) of a "
    "share, for the number of items that it was measured on: shares whose intervals hold each other's values are not "
    "told apart by this data. The interval says nothing of another seed."
)


def write_comparison(folders: Sequence[Path | str], out: Path | str) -> Path:
    """Write the page and its pictures into `out`; returns the path of comparison.md. Raises UserError for a folder that
    is no run, and where nothing was measured."""
    rows = compare(folders)
    light, dark = _draw(rows, LIGHT), _draw(rows, DARK)
    page = blocks(rows, list(light))
    for name, image in light.items():
        atomic.write(Path(out) / f"{name}.png", image)
    atomic.write(Path(out) / "comparison.html", to_html("Comparison", page, light, dark))
    path = Path(out) / "comparison.md"
    atomic.write(path, to_markdown("Comparison", page, "."))
    return path


def blocks(rows: Sequence[Recipe], drawn: Sequence[str]) -> list[Element]:
    """The page: what the columns are, the pictures, the table."""
    page: list[Element] = []
    unit = UNITS[rows[0].unit].capitalize()
    if domains_of(rows):
        words = f"{unit} of held-out text at the end of each run, and its change against the first line that knows it."
        if rows[0].unit != "perplexity":
            words += " The runs have different tokenizers, so their perplexities are of different tokens."
        page.append(Paragraph(words))
    if measures_of(rows):
        page.append(Paragraph(MEASURED))
    shown = {"perplexity": f"{unit} by run and domain", "measures": "What was measured, at the end and by steps"}
    return [*page, *(Picture(name, shown[name]) for name in drawn), Sheet(*table(rows))]


def table(rows: Sequence[Recipe]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells."""
    domains, measures, acted = domains_of(rows), measures_of(rows), any(row.actions for row in rows)
    first = first_values(rows)
    of = "" if rows[0].unit == "perplexity" else f", {UNITS[rows[0].unit]}"
    on_text = [f"{domain}{of}" for domain in domains]
    columns = ["run", *on_text, *measures, "tokens", "time", *(["guard"] if acted else [])]
    cells = []
    for row in rows:
        values = [cell(row, domain, first[domain]) for domain in domains]
        values += [measured(row.measured.get(name, ())) for name in measures]
        took = [count(row.tokens), span(row.seconds)]
        cells.append([named(row), *values, *took, *([row.actions] if acted else [])])
    return columns, cells


def measured(found: Sequence[HeldOutMeasure]) -> str:
    """What the runs of a recipe measured: of one its interval, of several mean and standard deviation."""
    if not found:
        return ""
    written = number if found[0].items is None else share
    digits = 3 if found[0].items is None else 1
    value = written(mean(one.last for one in found), digits)
    if len(found) > 1:
        return f"{value} ± {written(stdev(one.last for one in found), digits)}"
    between = found[0].interval
    return value if between is None else f"{value} ({between[0] * 100:.1f} to {between[1] * 100:.1f})"


def _draw(rows: Sequence[Recipe], theme: Theme) -> dict[str, bytes]:
    drawn = {}
    for name, picture in PICTURES.items():
        with rc_context(style(theme)):
            if (figure := picture(rows, theme)) is not None:
                drawn[name] = png(figure)
    return drawn
