"""The short table that a run ends with on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lifecycle.report.run.facts import headline
from lifecycle.report.run.forgetting_section import table, verdict
from lifecycle.report.run.run_data import read_run
from lifecycle.report.run.sections import domain_table, incidents, overview, title

COLOURS = {"finished": "bold green", "running": "bold cyan", "stopped": "bold yellow", "failed": "bold red"}


def terminal_summary(run_folder: Path | str) -> RenderableType:
    """What came out, as a rich renderable: overview, incidents, held-out results, the report's path."""
    folder = Path(run_folder)
    run = read_run(folder)
    facts = headline(run)
    parts: list[RenderableType] = [Text(title(run), style="bold")]
    plain = Table.grid(padding=(0, 2))
    for name, value in overview(run, facts):
        plain.add_row(Text(name, style="dim"), Text(value, style=COLOURS.get(value, "")))
    for name, value in incidents(run):
        plain.add_row(Text(name, style="yellow"), value.replace("`", ""))
    parts.append(Padding(plain, (1, 0, 0, 0)))
    if facts.domains:
        columns, rows = domain_table(facts)
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
