"""The pictures of a comparison: perplexities as a matrix of runs and domains; every other measure as a row of its own,
the values at the end with their intervals beside the curves over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lifecycle.report.comparison.recipes import LONGEST_NAME, UNITS, HeldOutMeasure, Recipe
from lifecycle.report.page.canvas import Theme, canvas, ticks
from lifecycle.report.page.format import number

FULL_COLOUR = math.log(2)  # a perplexity halved or doubled
MOST = 8
"""Measures that are drawn; the table has them all."""


def matrix(rows: Sequence[Recipe], theme: Theme) -> Figure | None:
    """Runs by domains: blue where a value fell, red where it rose, full colour at half or double; None without text."""
    domains, first = domains_of(rows), first_values(rows)
    if not domains:
        return None
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
            words = cell(row, domain, first[domain]).replace(" (", "\n(")
            axes.text(x, y, words, ha="center", va="center", color=theme.ink, fontsize=9.5)
    axes.set_xticks(range(len(domains)), domains, color=theme.ink)
    axes.set_yticks(range(len(rows)), [_short(named(row)) for row in rows], color=theme.ink)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color=theme.surface, linewidth=3)
    for edge in range(1, len(domains)):
        axes.axvline(edge - 0.5, color=theme.surface, linewidth=3)
    return figure


def panels(rows: Sequence[Recipe], theme: Theme) -> Figure | None:
    """One row a measure: at the left what each run ended with, at the right its way there; None without any."""
    rows = [row for row in rows if row.measured]
    names = measures_of(rows)[:MOST]
    if not names:
        return None
    height = 0.5 + len(names) * (0.85 + 0.26 * len(rows))
    figure, axes = canvas(theme, "What was measured on held-out data", height=height, rows=len(names), columns=2)
    colors = [color for color, _ in zip(cycle(theme.series), rows, strict=False)]
    for place, name in enumerate(names):
        end, way = axes[2 * place : 2 * place + 2]
        for y, (row, color) in enumerate(zip(rows, colors, strict=True)):
            _end(end, theme, y, row.measured.get(name, ()), color)
            for one in row.measured.get(name, ()):
                way.plot(one.steps, one.values, color=color, linewidth=1.8, marker="o", markersize=3.5)
        end.set_title(name, fontsize=10.5, color=theme.ink, loc="left")
        end.set_yticks(range(len(rows)), [_short(named(row)) for row in rows], color=theme.ink)
        end.set_ylim(len(rows) - 0.5, -0.5)
        end.grid(visible=False, axis="y")
        end.margins(x=0.12)
        way.set_xlim(left=0)
        shares = any(one.items is not None for row in rows for one in row.measured.get(name, ()))
        for axis in (end.xaxis, way.yaxis):
            axis.set_major_locator(ticks(4))
            if shares:
                axis.set_major_formatter(PercentFormatter(1.0))
    axes[-1].set_xlabel("step")
    return figure


def _end(axes: Axes, theme: Theme, y: int, found: Sequence[HeldOutMeasure], color: str) -> None:
    """A recipe's last values: of one run with the interval of a share, of several each and their mean."""
    if not found:
        return
    middle = mean(one.last for one in found)
    if len(found) == 1 and (between := found[0].interval) is not None:
        axes.plot(between, [y, y], color=color, linewidth=2.2, solid_capstyle="butt", alpha=0.55)
    axes.plot([one.last for one in found], [y] * len(found), color=color, linestyle="", marker="|", markersize=9)
    axes.plot([middle], [y], color=color, marker="o", markersize=6)
    words = number(middle, 3) if found[0].items is None else f"{middle:.1%}"
    axes.annotate(words, (middle, y), (0, 6), textcoords="offset points", color=theme.ink, fontsize=8.5, ha="center")


def _short(name: str) -> str:
    """A name that leaves room for the curves."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def measures_of(rows: Sequence[Recipe]) -> list[str]:
    """Names of what was measured beside text, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.measured))


def domains_of(rows: Sequence[Recipe]) -> list[str]:
    """Names of the domains of text, in order of appearance."""
    return list(dict.fromkeys(domain for row in rows for domain in row.held_out))


def first_values(rows: Sequence[Recipe]) -> dict[str, float]:
    """By domain, what changes are against."""
    return {d: mean(next(row.held_out[d] for row in rows if d in row.held_out)) for d in domains_of(rows)}


def named(row: Recipe) -> str:
    """A recipe, and how many runs it has."""
    return f"{row.name} ({row.runs} seeds)" if row.runs > 1 else row.name


def cell(row: Recipe, domain: str, first: float) -> str:
    """The value on a domain of text, and its change against `first`."""
    values = row.held_out.get(domain)
    if not values:
        return ""
    digits = 2 if row.unit == "perplexity" else 3
    spread = f" ± {number(stdev(values), digits)}" if len(values) > 1 else ""
    change = mean(values) / first - 1
    return number(mean(values), digits) + spread + (f" ({change:+.1%})" if abs(change) >= 5e-4 else "")
