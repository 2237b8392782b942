"""The picture of a curriculum: which levels of difficulty a source's tokens came from, over the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lifecycle.report.page.canvas import Theme, canvas, ticks
from lifecycle.report.run.run_data import RunData, dig

MOST_SOURCES = 8


def curriculum(run: RunData, theme: Theme) -> Figure | None:
    """One panel a source: the shares of its levels, easiest at the bottom and palest; None without a curriculum."""
    levels: Mapping[str, Mapping[str, Any]] = dig(run.run, "data.levels") or {}
    names = list(levels)[:MOST_SOURCES]
    if not names:
        return None
    figure, panels = canvas(
        theme, "Curriculum: planned share of a source's tokens by level", height=0.9 + 1.7 * len(names), rows=len(names)
    )
    for axes, name in zip(panels, names, strict=True):
        _panel(axes, theme, name, levels[name])
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("progress of the run")
    return figure


def _panel(axes: Axes, theme: Theme, source: str, levels: Mapping[str, Any]) -> None:
    begins = sorted(float(at) for at in next(iter(levels.values()))["weight"])
    tables = [{float(at): float(w) for at, w in level["weight"].items()} for level in levels.values()]
    whole = [sum(table[at] for table in tables) for at in begins]
    floor = [0.0] * (len(begins) + 1)
    for number, (name, table) in enumerate(zip(levels, tables, strict=True)):
        shares = [table[at] / total for at, total in zip(begins, whole, strict=True)]
        ceiling = [low + share for low, share in zip(floor, [*shares, shares[-1]], strict=True)]
        alpha = 0.15 + 0.85 * number / max(1, len(tables) - 1)
        label = name.removeprefix(f"{source}.level")
        axes.fill_between(
            [*begins, 1.0], floor, ceiling, step="post", color=theme.series[0], alpha=alpha, linewidth=0, label=label
        )
        floor = ceiling
    axes.set_title(source, fontsize=10.5, color=theme.ink, loc="left")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_locator(ticks(3))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8.5, reverse=True)
