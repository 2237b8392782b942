"""The report of a run: report.md and report.html in its folder, and the short table on the terminal when it ends.

Both read nothing but the folder.
"""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lifecycle.errors import UserError
from lifecycle.report.page.canvas import DARK, LIGHT
from lifecycle.report.page.render import to_html, to_markdown
from lifecycle.report.run.facts import headline
from lifecycle.report.run.forgetting_section import table, verdict
from lifecycle.report.run.plots import draw
from lifecycle.report.run.run_data import read_run
from lifecycle.report.run.sections import incidents, overview, results_table, sections, title
from lifecycle.system import atomic

PICTURES = "report"
STATUS_COLOURS = {"finished": "bold green", "running": "bold cyan", "stopped": "bold yellow", "failed": "bold red"}


def write_report(run_folder: Path | str) -> Path:
    """Write report.md (its pictures in `report/`) and report.html (whole in itself); returns the path of report.md.

    Works on a run that is not finished, too, and says what is missing. Raises UserError where there is no such folder.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise UserError(f"no run at {folder}: give the folder of a run, such as outputs/NAME")
    run = read_run(folder)
    light, dark = draw(run, LIGHT), draw(run, DARK)
    blocks, name = sections(run, list(light)), title(run)
    for picture, image in light.items():
        atomic.write(folder / PICTURES / f"{picture}.png", image)
    atomic.write(folder / "report.html", to_html(name, blocks, light, dark))
    path = folder / "report.md"
    atomic.write(path, to_markdown(name, blocks, PICTURES))
    return path


def terminal_summary(run_folder: Path | str) -> RenderableType:
    """What came out, as a rich renderable: overview, incidents, held-out results, the report's path."""
    folder = Path(run_folder)
    run = read_run(folder)
    facts = headline(run)
    parts: list[RenderableType] = [Text(title(run), style="bold")]
    plain = Table.grid(padding=(0, 2))
    for name, value in overview(run, facts):
        plain.add_row(Text(name, style="dim"), Text(value, style=STATUS_COLOURS.get(value, "")))
    for name, value in incidents(run):
        plain.add_row(Text(name, style="yellow"), value.replace("`", ""))
    parts.append(Padding(plain, (1, 0, 0, 0)))
    columns, rows = results_table(run, facts)
    if rows:
        parts.append(sheet(columns, rows))
    kept = verdict(run)
    if kept:
        parts.append(Text(kept))
        columns, rows = table(run)
        parts.append(sheet(columns, rows))
    written = [name for name in ("report.md", "report.html") if (folder / name).exists()]
    if written:
        # Paths are copied by readers: never broken, never highlighted in pieces.
        paths = "\n".join(str(folder / name) for name in written)
        parts.append(Text(paths, style="bold cyan", no_wrap=True, overflow="ignore"))
    return Group(*parts)


def sheet(columns: list[str], rows: list[list[str]], *, wrap: bool = False) -> Table:
    """A table of words and numbers; `wrap`: cells may take several lines, else they are cut."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        made.add_column(
            column,
            justify="right" if index else "left",
            style="bold" if index == 1 else "",
            no_wrap=not wrap,
            overflow="fold" if wrap else "ellipsis",
        )
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def turned(columns: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The same table with a column for each of its rows, and an interval in brackets below its number: for a narrow
    terminal, where there are fewer rows than columns."""
    cells = [[cell.replace(" (", "\n(") for cell in row] for row in rows]
    first, *others = zip(columns, *cells, strict=True)
    return list(first), [list(row) for row in others]
