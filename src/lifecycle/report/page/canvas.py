"""What all pictures share: two colour modes, an empty canvas, axes in tokens, a level across, a smoothed curve.

Drawn on bare `Figure` objects: no pyplot, so no global state, no window system, and nothing left behind in the process.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lifecycle.report.page.format import short

WIDTH = 8.0  # inches; at DPI it is twice the width of the page's column, sharp on a dense screen
DPI = 160


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one mode. Readers who cannot distinguish red and green can still distinguish those of `series`."""

    name: str
    surface: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]


LIGHT = Theme(
    name="light",
    surface="#ffffff",
    ink="#1c1b1a",
    muted="#6f6d68",
    grid="#e6e4de",
    series=("#2a78d6", "#e0661f", "#159a6c", "#7a4fc9", "#c9458a", "#a07800", "#4c5866", "#d03b3b"),
)
DARK = Theme(
    name="dark",
    surface="#17181a",
    ink="#eceae6",
    muted="#a3a19b",
    grid="#2e3033",
    series=("#5b9df0", "#f08a4b", "#3cc795", "#a98bec", "#e77ab2", "#d0a52c", "#9aa6b4", "#f07171"),
)


def style(theme: Theme) -> dict[Any, Any]:
    """Matplotlib's settings of a mode."""
    return {
        "font.size": 10.5,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.muted,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "axes.facecolor": theme.surface,
        "figure.facecolor": theme.surface,
    }


def png(figure: Figure) -> bytes:
    """The drawn figure."""
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def canvas(theme: Theme, title: str, *, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure and its panels, row by row."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes in panels:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, pad=5)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=theme.ink)
    return figure, panels


def curve(
    axes: Axes,
    steps: Sequence[float],
    values: Sequence[float],
    color: str,
    *,
    width: float = 2,
    label: str | None = None,
) -> None:
    """What was measured, pale, and the same smoothed."""
    axes.plot(steps, values, color=color, alpha=0.28, linewidth=0.8)
    axes.plot(steps, smooth(values), color=color, linewidth=width, label=label, marker=alone(values))


def alone(values: Sequence[float]) -> str | None:
    """The marker of a curve of one point, which is not seen as a line."""
    return "o" if len(values) == 1 else None


def tokens_axis(axes: Axes, x: str, *, label: bool = True, count: int = 7) -> None:
    """The x axis: tokens (or steps), from 0."""
    axes.xaxis.set_major_locator(ticks(count, whole=True))  # half a step would be written as a whole one
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v) if x == "tokens" else f"{v:,.0f}"))
    axes.set_xlim(left=0)
    if label:
        axes.set_xlabel("tokens" if x == "tokens" else "step")
    else:
        axes.tick_params(labelbottom=False)


def level(
    axes: Axes, theme: Theme, level: float, label: str, style: str, *, above: bool = True, left: bool = False
) -> None:
    """A dashed line across, with its name on it, at its right end or its left one."""
    axes.axhline(level, color=theme.muted, linestyle=style, linewidth=1.2)
    axes.annotate(
        label,
        (0.01 if left else 0.99, level),
        (0, 3 if above else -4),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        color=theme.muted,
        fontsize=9.5,
        ha="left" if left else "right",
        va="bottom" if above else "top",
        bbox={"facecolor": theme.surface, "linewidth": 0, "pad": 0.8},
    )


def ticks(number: int, *, whole: bool = False) -> MaxNLocator:
    """About so many round numbers; whole: none between two whole ones."""
    return MaxNLocator(number, steps=[1, 2, 2.5, 5, 10], integer=whole)


def legend(axes: Axes, *, where: Literal["upper right", "best"] = "upper right") -> None:
    """Names of the curves, if any is drawn. where: as matplotlib names places; best: where they hide least."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=where, frameon=False, fontsize=9.5)


def smooth(values: Sequence[float]) -> list[float]:
    """A straight line fitted around each point: about a fortieth of the run to both sides, less near the steep start.

    Unlike a running mean it does not lag behind a falling curve. Values that are not finite are ignored. It stays
    within what was measured: the line through a few shares would leave 0 to 1.
    """
    y = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(y)
    place = np.arange(len(y), dtype=np.float64)
    parts = [finite, place * finite, np.where(finite, y, 0), place**2 * finite, place * np.where(finite, y, 0)]
    sums = np.concatenate([np.zeros((5, 1)), np.cumsum(np.stack(parts).astype(np.float64), axis=1)], axis=1)
    index = np.arange(len(y))
    half = np.minimum(1 + len(y) // 40, 1 + index // 4)
    first = np.maximum(np.minimum(index - half, len(y) - 1 - 2 * half), 0)  # the window keeps its width at the end
    n, x, total, xx, xy = sums[:, np.minimum(index + half + 1, len(y))] - sums[:, first]
    n_safe = np.maximum(n, 1)
    spread = xx - x**2 / n_safe
    slope = np.where(spread > 1e-9, (xy - x * total / n_safe) / np.where(spread > 1e-9, spread, 1), 0.0)
    fitted = total / n_safe + slope * (place - x / n_safe)
    if finite.any():
        fitted = np.clip(fitted, y[finite].min(), y[finite].max())
    return [float(v) for v in np.where(n > 0, fitted, np.nan)]
