"""The section on forgetting of the parent's domains: picture, table and text, from `forgetting.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lifecycle.report.page.canvas import Theme, canvas, level, tokens_axis
from lifecycle.report.page.format import short
from lifecycle.report.run.run_data import RunData

THRESHOLDS = (("watch", ":"), ("act", "--"), ("stop", "-."))
MOST_ROWS = 12


def measurements(run: RunData) -> list[Mapping[str, Any]]:
    """All measurements of the retained domains, the first one before the first step; empty where there are none."""
    found: list[Mapping[str, Any]] = run.forgetting.get("measurements", [])
    return found


def forgetting(run: RunData, theme: Theme) -> Figure | None:
    """Above, perplexity of the parent's domains (solid) and of the new ones (dashed); below, the forgetting of the
    parent's domains, and the actions of the guard."""
    found = measurements(run)
    if len(found) < 2:
        return None
    figure, (above, below) = canvas(theme, "What is gained, and what is forgotten", height=6.2, rows=2)
    steps = [m["step"] for m in found]
    names = list(found[0]["perplexity"])
    for index, name in enumerate(names):
        color = theme.series[index % len(theme.series)]
        kept = name in found[-1]["forgetting"]
        _curve(above, steps, [m["perplexity"][name] for m in found], name, color, "-" if kept else "--")
        if kept:
            _curve(below, steps, [100 * m["forgetting"][name] for m in found], name, color, "-")
    above.set_yscale("log")
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    above.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    above.yaxis.set_minor_formatter(NullFormatter())
    above.tick_params(which="minor", length=0)
    above.set_title("held-out perplexity: parent's domains (solid), new ones (dashed)", fontsize=10.5, loc="left")
    below.set_title("perplexity above the start's", fontsize=10.5, loc="left")
    below.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f} %"))
    _thresholds(run, theme, below)
    for measurement in found:
        _action(theme, (above, below), measurement)
    for axes in (above, below):
        tokens_axis(axes, "step", label=axes is below)
        axes.margins(x=0.1)
        axes.set_xlim(left=0)
    return figure


def _curve(axes: Axes, steps: Sequence[int], values: Sequence[float], name: str, color: str, line: str) -> None:
    axes.plot(steps, values, color=color, linewidth=2, linestyle=line, marker="o", markersize=3.5)
    axes.annotate(
        name, (steps[-1], values[-1]), (6, 0), textcoords="offset points", color=color, va="center", fontsize=9.5
    )


def _thresholds(run: RunData, theme: Theme, axes: Axes) -> None:
    """The guard's thresholds that the curves come near to, as dashed lines."""
    top = axes.get_ylim()[1]
    for name, line in THRESHOLDS:
        value = run.setting(f"guard.{name}")
        if value is not None and 100 * value <= 1.5 * top:
            level(axes, theme, 100 * value, name, line, left=True)


def _action(theme: Theme, panels: Sequence[Axes], measurement: Mapping[str, Any]) -> None:
    if not measurement.get("action"):
        return
    for axes in panels:
        axes.axvline(measurement["step"], color=theme.ink, linewidth=1.0, alpha=0.55)
    panels[0].annotate(
        action_words(measurement),
        (measurement["step"], 0.02),
        (4, 0),
        xycoords=panels[0].get_xaxis_transform(),
        textcoords="offset points",
        fontsize=9,
        color=theme.ink,
        rotation=90,
        va="bottom",
    )


def action_words(measurement: Mapping[str, Any]) -> str:
    """`replay 10 % to 20 %`, or nothing."""
    action, to = measurement.get("action"), measurement.get("to") or 0
    if action == "replay":
        return f"replay {measurement['share']:.0%} to {to:.0%}"
    if action == "rate":
        return f"rate x {to:g}"
    return f"back to step {to}" if action == "restore" else ""


def table(run: RunData) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: forgetting of every retained domain at every measurement (in a long run, at some of them)."""
    found = measurements(run)
    names = list(found[-1]["forgetting"]) if found else []
    every = max(1, len(found) // MOST_ROWS)
    shown = [m for n, m in enumerate(found) if m.get("action") or n % every == 0 or n == len(found) - 1]
    rows = [
        [
            f"{m['step']:,}",
            *(f"{m['forgetting'].get(name, 0.0):+z.1%}" for name in names),
            str(m["level"]),
            action_words(m),
        ]
        for m in shown
    ]
    return ["step", *names, "level", "action"], rows


def verdict(run: RunData) -> str:
    """One or two sentences: the largest forgetting at the end, and how often the guard acted."""
    found = measurements(run)
    if not found or not found[-1]["forgetting"]:
        return ""
    name, worst = max(found[-1]["forgetting"].items(), key=lambda item: item[1])
    acted = sum(bool(m.get("action")) for m in found)
    lost = f"At the end the perplexity of {name} is {worst:+z.1%} against the parent's"
    most = f", the most of the parent's domains ({found[-1]['level']})."
    advice = str(found[-1].get("advice") or "")
    done = f" The guard acted {acted} time{'s' * (acted > 1)}." if acted else ""
    return lost + most + done + (f" {advice[0].upper()}{advice[1:]}." if advice else "")
