"""The pictures of a report, each a function of the run's data and a theme; None where the run has nothing to draw.

Drawn on bare `Figure` objects: no pyplot, so no global state, no window system, and nothing left behind in the process.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from lifecycle.report.read import RunData
from lifecycle.report.words import short

WIDTH = 8.0  # inches; at DPI it is twice the width of the page's column, sharp on a dense screen
DPI = 160


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one mode. `series` are told apart also by readers who do not see red and green apart."""

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


def draw(run: RunData, theme: Theme) -> dict[str, bytes]:
    """Every picture that the run has data for, by name, as PNG."""
    style = {
        "font.size": 10.5,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.muted,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "axes.facecolor": theme.surface,
        "figure.facecolor": theme.surface,
    }
    drawn = {}
    for name, picture in PICTURES.items():
        with rc_context(style):
            figure = picture(run, theme)
            if figure is not None:
                drawn[name] = _png(figure)
    return drawn


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def loss(run: RunData, theme: Theme) -> Figure | None:
    """Training loss, raw and smoothed; held-out loss; what a unigram and a bigram model reach."""
    x = _x(run)
    steps, values = run.series("train/loss", x)
    if not steps:
        return None
    figure, (axes,) = _canvas(theme, "Loss (nats a token)", height=3.9)
    first, second = theme.series[:2]
    axes.plot(steps, values, color=first, alpha=0.28, linewidth=0.8)
    axes.plot(steps, smooth(values), color=first, linewidth=2, label="training, smoothed")
    held_x, held = run.series("valid/loss", x)
    if held:
        axes.plot(held_x, held, color=second, linewidth=1.4, marker="o", markersize=5, label="held out")
        axes.annotate(f"{held[-1]:.2f}", (held_x[-1], held[-1]), (6, 5), textcoords="offset points", color=second)
    for name, style in (("unigram", ":"), ("bigram", "--")):
        level = _baseline_loss(run, name)
        if level is not None:
            axes.axhline(level, color=theme.muted, linestyle=style, linewidth=1.3, label=f"{name} model, held out")
    _tokens_axis(axes, x)
    _legend(axes)
    return figure


def _baseline_loss(run: RunData, name: str) -> float | None:
    """The baseline's loss, averaged over domains with the weights that `valid/loss` has."""
    known = {d: run.baselines[d][name] for d in run.domains if name in run.baselines.get(d, {})}
    if not known or len(known) < len(run.domains):
        return None
    return sum(run.domain_weights[d] * math.log(perplexity) for d, perplexity in known.items())


def perplexity(run: RunData, theme: Theme) -> Figure | None:
    """One panel a domain: held-out perplexity beside the baselines of that domain."""
    x = _x(run)
    domains = [d for d in run.domains if run.series(f"valid/{d}/perplexity", x)[0]]
    if not domains:
        return None
    columns = min(3, len(domains))
    rows = -(-len(domains) // columns)
    figure, panels = _canvas(theme, "Held-out perplexity by domain", height=0.7 + 2.7 * rows, rows=rows, columns=columns)
    for index, axes in enumerate(panels):
        if index >= len(domains):
            axes.set_visible(False)
            continue
        _domain_panel(run, theme, axes, domains[index], theme.series[index % len(theme.series)], x)
    return figure


def _domain_panel(run: RunData, theme: Theme, axes: Axes, domain: str, color: str, x: str) -> None:
    steps, values = run.series(f"valid/{domain}/perplexity", x)
    axes.plot(steps, values, color=color, linewidth=2, marker="o", markersize=4)
    axes.annotate(
        f"{values[-1]:,.1f}", (steps[-1], values[-1]), (0, 8), textcoords="offset points", color=color, ha="right", weight="bold"
    )
    for name, style in (("unigram", ":"), ("bigram", "--")):
        level = run.baselines.get(domain, {}).get(name)
        if level is not None:
            axes.axhline(level, color=theme.muted, linestyle=style, linewidth=1.2)
            place = axes.get_yaxis_transform()
            label = f"{name} {level:,.0f}"
            axes.text(0.98, level, label, transform=place, color=theme.muted, fontsize=9, ha="right", va="bottom")
    axes.set_title(domain, fontsize=10.5, color=theme.ink, loc="left")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.12)
    _tokens_axis(axes, x, ticks=4)


def rate(run: RunData, theme: Theme) -> Figure | None:
    """The learning rate, and below it the norm of the gradient before clipping."""
    x = _x(run)
    curves = [("learning rate", *run.series("train/lr", x)), ("gradient norm", *run.series("train/grad_norm", x))]
    curves = [curve for curve in curves if curve[1]]
    if not curves:
        return None
    figure, panels = _canvas(theme, "Learning rate and gradient norm", height=1.1 + 1.6 * len(curves), rows=len(curves))
    for axes, (name, steps, values), color in zip(panels, curves, theme.series, strict=False):
        faint = name == "gradient norm"
        axes.plot(steps, values, color=color, linewidth=0.8 if faint else 2, alpha=0.35 if faint else 1)
        if faint:
            axes.plot(steps, smooth(values), color=color, linewidth=1.8)
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        _tokens_axis(axes, x, label=axes is panels[-1])
    return figure


def throughput(run: RunData, theme: Theme) -> Figure | None:
    """Tokens a second, and the share of time that training waited for data."""
    x = _x(run)
    steps, speed = run.series("perf/tokens_per_second", x)
    if not steps:
        return None
    waits_x, waits = run.series("perf/data_wait", x)
    rows = 2 if waits else 1
    figure, panels = _canvas(theme, "Throughput", height=1.4 + 1.5 * rows, rows=rows)
    panels[0].plot(steps, speed, color=theme.series[0], linewidth=1.6)
    middle = median(speed)
    panels[0].axhline(middle, color=theme.muted, linestyle="--", linewidth=1.2, label=f"median {middle:,.0f}")
    panels[0].set_ylabel("tokens/s")
    panels[0].set_ylim(0, max(speed) * 1.2)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    _legend(panels[0], where="lower right")
    if waits:
        percent = [100 * wait for wait in waits]
        panels[1].fill_between(waits_x, percent, color=theme.series[1], alpha=0.25, linewidth=0)
        panels[1].plot(waits_x, percent, color=theme.series[1], linewidth=1.4)
        panels[1].set_ylabel("data wait, %")
        panels[1].set_ylim(0, max(1.0, max(percent) * 1.3))
    for axes in panels:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        _tokens_axis(axes, x, label=axes is panels[-1])
    return figure


def ledger(run: RunData, theme: Theme) -> Figure | None:
    """Planned (outline) and seen (filled) tokens of every source, and how often it was read."""
    sources = run.ledger.get("sources", {})
    if not sources:
        return None
    figure, (axes,) = _canvas(theme, "Tokens by source: planned and seen", height=1.5 + 0.55 * len(sources))
    most = max(max(s.get("planned_tokens") or 0, s.get("seen_tokens") or 0) for s in sources.values()) or 1
    domains = list(dict.fromkeys(s.get("domain", "") for s in sources.values()))
    for place, source in enumerate(sources.values()):
        color = theme.series[domains.index(source.get("domain", "")) % len(theme.series)]
        planned, seen = source.get("planned_tokens") or 0, source.get("seen_tokens") or 0
        axes.barh(place, seen, height=0.5, color=color, alpha=0.85)
        axes.barh(place, planned, height=0.66, fill=False, edgecolor=theme.ink, linewidth=1.1)
        epochs = source.get("epochs")
        note = f"{short(seen)} of {short(planned)}" + ("" if epochs is None else f", {epochs:,.2f} epochs")
        axes.text(max(planned, seen) + most * 0.012, place, note, va="center", color=theme.muted, fontsize=9.5)
    axes.set_yticks(range(len(sources)), [f"{n}  ({s.get('domain', '?')})" for n, s in sources.items()], color=theme.ink)
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.42)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("tokens (outline: planned for the whole run, filled: seen)")
    return figure


PICTURES: dict[str, Callable[[RunData, Theme], Figure | None]] = {
    "loss": loss,
    "perplexity": perplexity,
    "ledger": ledger,
    "learning_rate": rate,
    "throughput": throughput,
}


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential mean over about a fortieth of the run, corrected at the start; values that are not finite are passed by."""
    keep = 1 - 1 / max(1.0, len(values) / 40)
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight if weight else math.nan)
    return out


def _x(run: RunData) -> str:
    """Tokens where they were logged, else steps."""
    return "tokens" if len(set(run.series("tokens", "step")[1])) > 1 else "step"


def _canvas(
    theme: Theme, title: str, *, height: float, rows: int = 1, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes in panels:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, pad=5)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12.5, fontweight="bold", color=theme.ink)
    return figure, panels


def _tokens_axis(axes: Axes, x: str, *, label: bool = True, ticks: int = 7) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v) if x == "tokens" else f"{v:,.0f}"))
    axes.set_xlim(left=0)
    if label:
        axes.set_xlabel("tokens" if x == "tokens" else "step")
    else:
        axes.tick_params(labelbottom=False)


def _legend(axes: Axes, where: str = "upper right") -> None:
    axes.legend(loc=where, frameon=False, fontsize=9.5)
