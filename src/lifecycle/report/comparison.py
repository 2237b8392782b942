"""Several runs side by side: held-out perplexity of every domain at the end of each, as a table and a picture.

    python -m lifecycle.report --compare outputs/comparison outputs/a outputs/b ...

Runs that differ in their seed, or in how they were watched, are one row, mean and standard deviation. A cell's change
is against the domain's first known value: what the first run with that domain began with, else what it ended with.

Perplexities of two tokenizers cannot be compared, for their tokens are of different lengths: such runs are compared by
bits per byte.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from statistics import mean, stdev

from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lifecycle.errors import UserError
from lifecycle.report.page.canvas import LIGHT, Theme, canvas, png, style
from lifecycle.report.page.format import count, number, span
from lifecycle.report.page.render import Element, Paragraph, Picture, Sheet, to_markdown
from lifecycle.report.run.forgetting_section import action_words, measurements
from lifecycle.report.run.provenance import tokenizer_digest
from lifecycle.report.run.run_data import RunData, read_run
from lifecycle.system import atomic

PICTURE = "perplexity"
FULL_COLOUR = math.log(2)  # a perplexity halved or doubled
UNITS = {"perplexity": "perplexity", "bits_per_byte": "bits per byte"}
"""Metrics that runs are compared by, in words."""
ASIDE = ("run", "seed", "callbacks", "logger", "logging")
"""Keys of a config that change neither the model nor the data nor the training."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Runs of one recipe: values of a metric of `UNITS` by domain, one for each run that measured it, and what it
    took."""

    name: str
    runs: int
    unit: str
    held_out: dict[str, list[float]]
    tokens: float | None
    seconds: float | None
    actions: str


def write_comparison(folders: Sequence[Path | str], out: Path | str) -> Path:
    """Write comparison.md and its picture into `out`; returns the path of the first. Raises UserError for a folder that
    is no run, and where nothing was measured."""
    rows = compare(folders)
    columns, cells = table(rows)
    unit = UNITS[rows[0].unit].capitalize()
    words = f"{unit} of held-out text at the end of each run, and its change against the first line that knows it."
    if rows[0].unit != "perplexity":
        words += " The runs have different tokenizers, so their perplexities are of different tokens."
    blocks: list[Element] = [Paragraph(words), Picture(PICTURE, f"{unit} by run and domain"), Sheet(columns, cells)]
    with rc_context(style(LIGHT)):
        image = png(matrix(rows, LIGHT))
    atomic.write(Path(out) / f"{PICTURE}.png", image)
    path = Path(out) / "comparison.md"
    atomic.write(path, to_markdown("Comparison", blocks, "."))
    return path


def compare(folders: Sequence[Path | str]) -> list[Recipe]:
    """One row for each recipe, in the order given; before them what a first run that had a parent began with.

    A run that is given twice counts once.
    """
    runs = []
    for folder in {Path(folder).resolve(): Path(folder) for folder in folders}.values():
        run = read_run(folder)
        if not run.domains:
            raise UserError(f"{folder} holds no measured run: give folders of runs that were validated")
        runs.append(run)
    if not runs:
        raise UserError("nothing to compare: give the folders of some runs, such as outputs/a outputs/b")
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        groups.setdefault(_recipe(run), []).append(run)
    unit = "perplexity" if len({digest for run in runs if (digest := tokenizer_digest(run))}) < 2 else "bits_per_byte"
    rows = [_row(group, unit) for group in groups.values()]
    start = {domain: [value] for domain in runs[0].domains if (value := _at_start(runs[0], domain, unit)) is not None}
    if start:
        rows.insert(0, Recipe(name="before", runs=1, unit=unit, held_out=start, tokens=None, seconds=None, actions=""))
    return rows


def table(rows: Sequence[Recipe]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells."""
    domains, acted = _domains(rows), any(row.actions for row in rows)
    first = _first(rows)
    of = "" if rows[0].unit == "perplexity" else f", {UNITS[rows[0].unit]}"
    columns = ["run", *(f"{domain}{of}" for domain in domains), "tokens", "time", *(["guard"] if acted else [])]
    cells = []
    for row in rows:
        measured = [_cell(row, domain, first[domain]) for domain in domains]
        took = [count(row.tokens), span(row.seconds)]
        cells.append([_named(row), *measured, *took, *([row.actions] if acted else [])])
    return columns, cells


def matrix(rows: Sequence[Recipe], theme: Theme) -> Figure:
    """Runs by domains: blue where a value fell, red where it rose, full colour at half or double."""
    domains, first = _domains(rows), _first(rows)
    figure, (axes,) = canvas(theme, f"Held-out {UNITS[rows[0].unit]} by run and domain", height=1.1 + 0.6 * len(rows))
    values = [[row.held_out.get(domain, []) for domain in domains] for row in rows]
    colours = [
        [math.log(mean(line[x]) / first[domain]) if line[x] else math.nan for x, domain in enumerate(domains)]
        for line in values
    ]
    shades = LinearSegmentedColormap.from_list("change", [theme.series[0], theme.surface, theme.series[-1]])
    axes.imshow(colours, cmap=shades, vmin=-FULL_COLOUR, vmax=FULL_COLOUR, aspect="auto", alpha=0.75)
    for y, row in enumerate(rows):
        for x, domain in enumerate(domains):
            words = _cell(row, domain, first[domain]).replace(" (", "\n(")
            axes.text(x, y, words, ha="center", va="center", color=theme.ink, fontsize=9.5)
    axes.set_xticks(range(len(domains)), domains, color=theme.ink)
    axes.set_yticks(range(len(rows)), [_named(row) for row in rows], color=theme.ink)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color=theme.surface, linewidth=3)
    for edge in range(1, len(domains)):
        axes.axvline(edge - 0.5, color=theme.surface, linewidth=3)
    return figure


def _row(group: Sequence[RunData], unit: str) -> Recipe:
    names = [run.folder.resolve().name for run in group]
    common = re.sub(r"[_.-]*(seed|s)?[_.-]*$", "", commonprefix(names)) if len(names) > 1 else names[0]
    held_out: dict[str, list[float]] = {}
    for run in group:
        for domain in run.domains:
            if (value := _at_end(run, domain, unit)) is not None:
                held_out.setdefault(domain, []).append(value)
    tokens = [value for run in group if (value := run.last("tokens")) is not None]
    seconds = [float(run.run["seconds"]) for run in group if run.run.get("seconds") is not None]
    actions = ["; ".join(filter(None, (action_words(m) for m in measurements(run)))) for run in group]
    return Recipe(
        name=common or names[0],
        runs=len(group),
        unit=unit,
        held_out=held_out,
        tokens=mean(tokens) if tokens else None,
        seconds=mean(seconds) if seconds else None,
        actions=" | ".join(dict.fromkeys(filter(None, actions))),
    )


def _recipe(run: RunData) -> str:
    """What runs of one recipe have in common: all of the config but name, seed, and what only shows the run."""
    return repr({key: value for key, value in run.config.items() if key not in ASIDE} or run.folder)


def _at_start(run: RunData, domain: str, unit: str) -> float | None:
    steps, values = run.series(f"valid/{domain}/{unit}", "step")
    return values[0] if steps and steps[0] == 0 else None


def _at_end(run: RunData, domain: str, unit: str) -> float | None:
    """Of the model that the run ended with: a guard may have gone back."""
    steps, values = run.series(f"valid/{domain}/{unit}", "step")
    last = run.run.get("restored")
    kept = [value for step, value in zip(steps, values, strict=True) if not last or step <= last]
    return kept[-1] if kept else None


def _domains(rows: Sequence[Recipe]) -> list[str]:
    return list(dict.fromkeys(domain for row in rows for domain in row.held_out))


def _first(rows: Sequence[Recipe]) -> dict[str, float]:
    return {d: mean(next(row.held_out[d] for row in rows if d in row.held_out)) for d in _domains(rows)}


def _named(row: Recipe) -> str:
    return f"{row.name} ({row.runs} seeds)" if row.runs > 1 else row.name


def _cell(row: Recipe, domain: str, first: float) -> str:
    values = row.held_out.get(domain)
    if not values:
        return ""
    digits = 2 if row.unit == "perplexity" else 3
    spread = f" ± {number(stdev(values), digits)}" if len(values) > 1 else ""
    change = mean(values) / first - 1
    return number(mean(values), digits) + spread + (f" ({change:+.1%})" if abs(change) >= 5e-4 else "")
