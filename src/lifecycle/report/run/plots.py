"""The pictures of a report, each a function of the run's data and a theme; None where the run has nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from lifecycle.report.page.canvas import Theme, alone, canvas, curve, legend, level, png, style, ticks, tokens_axis
from lifecycle.report.page.format import short
from lifecycle.report.run.forgetting_section import forgetting
from lifecycle.report.run.reinforcement.pictures import pass_at_k, policy, rewards
from lifecycle.report.run.run_data import RunData, dig

BASELINE_STYLES = {"unigram": ":", "bigram": "--"}
MOST_SOURCES = 8  # in the picture of a curriculum


def draw(run: RunData, theme: Theme) -> dict[str, bytes]:
    """Every picture that the run has data for, by name, as PNG."""
    drawn = {}
    for name, picture in PICTURES.items():
        with rc_context(style(theme)):
            figure = picture(run, theme)
            if figure is not None:
                drawn[name] = png(figure)
    return drawn


def loss(run: RunData, theme: Theme) -> Figure | None:
    """Training loss, raw and smoothed; held-out loss; what a unigram and a bigram model reach. None for a run that
    learns from samples, of which the value of the loss says nothing."""
    x = _x(run)
    steps, values = run.series(run.training_loss, x)
    if not steps or run.learns_from_samples:
        return None
    figure, (axes,) = canvas(theme, "Loss (nats a token)" if run.is_likelihood else "Loss", height=3.9)
    first, second = theme.series[:2]
    curve(axes, steps, values, first, label="training, smoothed")
    held_x, held = run.series("valid/loss", x)
    if held:
        axes.plot(held_x, held, color=second, linewidth=1.4, marker=_marker(held), markersize=5, label="held out")
        last = (held_x[-1], held[-1])
        axes.annotate(
            f"{held[-1]:.2f}", last, (0, 9), textcoords="offset points", color=second, ha="center", weight="bold"
        )
    for name, line in BASELINE_STYLES.items():
        height = _baseline_loss(run, name)
        if height is not None:
            level(axes, theme, height, f"{name} model, held out: {height:.2f}", line)
    axes.yaxis.set_major_locator(ticks(6))
    tokens_axis(axes, x)
    legend(axes)
    return figure


def _baseline_loss(run: RunData, name: str) -> float | None:
    """The baseline's loss, averaged over domains with the weights that `valid/loss` has."""
    counted = {d: run.baselines[d][name] for d in run.domains if name in run.baselines.get(d, {})}
    if not counted or len(counted) < len(run.domains):
        return None
    return sum(run.domain_weights[d] * math.log(perplexity) for d, perplexity in counted.items())


def perplexity(run: RunData, theme: Theme) -> Figure | None:
    """One panel a domain: held-out perplexity beside the baselines of that domain."""
    x = _x(run)
    domains = [d for d in run.domains if run.series(f"valid/{d}/perplexity", x)[0]]
    if not domains:
        return None
    columns = min(3, len(domains))
    rows = -(-len(domains) // columns)
    figure, panels = canvas(theme, "Held-out perplexity by domain", height=0.7 + 2.7 * rows, rows=rows, columns=columns)
    for index, axes in enumerate(panels):
        if index >= len(domains):
            axes.set_visible(False)
            continue
        _domain_panel(run, theme, axes, domains[index], x)
    return figure


def _domain_panel(run: RunData, theme: Theme, axes: Axes, domain: str, x: str) -> None:
    color = _domain_color(run, theme, domain)
    steps, values = run.series(f"valid/{domain}/perplexity", x)
    axes.plot(steps, values, color=color, linewidth=2, marker=_marker(values), markersize=4)
    axes.annotate(
        f"{values[-1]:,.1f}",
        (steps[-1], values[-1]),
        (0, 8),
        textcoords="offset points",
        color=color,
        ha="right",
        weight="bold",
    )
    for name, line in BASELINE_STYLES.items():
        height = run.baselines.get(domain, {}).get(name)
        if height is not None:
            level(axes, theme, height, f"{name} {height:,.0f}", line)
    axes.set_title(domain, fontsize=10.5, color=theme.ink, loc="left")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.margins(y=0.12)
    tokens_axis(axes, x, count=4)


def rate(run: RunData, theme: Theme) -> Figure | None:
    """The learning rate, and below it the norm of the gradient before clipping."""
    x = _x(run)
    curves = [("learning rate", *run.series("train/lr", x)), ("gradient norm", *run.series("train/grad_norm", x))]
    curves = [curve for curve in curves if curve[1]]
    if not curves:
        return None
    figure, panels = canvas(theme, "Learning rate and gradient norm", height=1.1 + 1.6 * len(curves), rows=len(curves))
    for axes, (name, steps, values), color in zip(panels, curves, theme.series, strict=False):
        if name == "gradient norm":
            curve(axes, steps, values, color, width=1.8)
        else:
            axes.plot(steps, values, color=color, linewidth=2, marker=alone(values))
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(ticks(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        tokens_axis(axes, x, label=axes is panels[-1])
    figure.align_ylabels(panels)
    return figure


def throughput(run: RunData, theme: Theme) -> Figure | None:
    """Tokens a second, and the share of time that training waited for data."""
    x = _x(run)
    steps, speed = run.series("perf/tokens_per_second", x)
    if not steps:
        return None
    waits_x, waits = run.series("perf/data_wait", x)
    rows = 2 if waits else 1
    figure, panels = canvas(theme, "Throughput", height=1.4 + 1.5 * rows, rows=rows)
    panels[0].plot(steps, speed, color=theme.series[0], linewidth=1.6, marker=alone(speed))
    middle = median(speed)
    level(panels[0], theme, middle, f"median {middle:,.0f}", "--", above=False)
    panels[0].set_ylabel("tokens/s")
    panels[0].set_ylim(0, max(speed) * 1.2 or 1)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    if waits:
        percent = [100 * wait for wait in waits]
        panels[1].fill_between(waits_x, percent, color=theme.series[1], alpha=0.25, linewidth=0)
        panels[1].plot(waits_x, percent, color=theme.series[1], linewidth=1.4, marker=alone(waits))
        panels[1].set_ylabel("data wait, %")
        panels[1].set_ylim(0, max(1.0, max(percent) * 1.3))
    for axes in panels:
        axes.yaxis.set_major_locator(ticks(4))
        tokens_axis(axes, x, label=axes is panels[-1])
    figure.align_ylabels(panels)
    return figure


def ledger(run: RunData, theme: Theme) -> Figure | None:
    """Planned (pale) and seen (solid) tokens or prompts of every source, and how often it was read."""
    sources = run.ledger.get("sources", {})
    if not sources:
        return None
    unit = "Prompts" if run.learns_from_samples else "Tokens"
    figure, (axes,) = canvas(theme, f"{unit} by source (pale: planned, solid: seen)", height=0.75 + 0.52 * len(sources))
    most = max(max(s.get("planned_tokens") or 0, s.get("seen_tokens") or 0) for s in sources.values()) or 1
    for place, source in enumerate(sources.values()):
        color = _domain_color(run, theme, source.get("domain", ""))
        planned, seen = source.get("planned_tokens") or 0, source.get("seen_tokens") or 0
        axes.barh(place, planned, height=0.62, color=color, alpha=0.25, linewidth=0)
        axes.barh(place, seen, height=0.62 if seen < planned else 0.4, color=color, linewidth=0)
        epochs = source.get("epochs")
        note = f"{short(seen, 3)} of {short(planned, 3)}" + ("" if epochs is None else f",  {epochs:,.2f} epochs")
        axes.text(max(planned, seen) + most * 0.015, place, note, va="center", color=theme.muted, fontsize=9.5)
    axes.set_yticks(
        range(len(sources)), [f"{n}  ({s.get('domain', '?')})" for n, s in sources.items()], color=theme.ink
    )
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.45)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(labelbottom=False)
    return figure


def curriculum(run: RunData, theme: Theme) -> Figure | None:
    """One panel a source: the shares of its difficulty buckets, the easiest at the bottom and palest; None without a
    curriculum."""
    levels: Mapping[str, Mapping[str, Any]] = dig(run.run, "data.levels") or {}
    names = list(levels)[:MOST_SOURCES]
    if not names:
        return None
    figure, panels = canvas(
        theme, "Curriculum: planned share of a source's tokens by level", height=0.9 + 1.7 * len(names), rows=len(names)
    )
    for axes, name in zip(panels, names, strict=True):
        _levels_panel(axes, theme, name, levels[name])
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("progress of the run")
    return figure


def _levels_panel(axes: Axes, theme: Theme, source: str, levels: Mapping[str, Any]) -> None:
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


PICTURES: dict[str, Callable[[RunData, Theme], Figure | None]] = {
    "loss": loss,
    "rewards": rewards,
    "pass_at_k": pass_at_k,
    "policy": policy,
    "perplexity": perplexity,
    "forgetting": forgetting,
    "ledger": ledger,
    "learning_rate": rate,
    "throughput": throughput,
    "curriculum": curriculum,
}


def _marker(values: list[float]) -> str:
    """A marker for each point where there are so few that they do not overlap; else none."""
    return "o" if len(values) <= 40 else ""


def _domain_color(run: RunData, theme: Theme, domain: str) -> str:
    """A domain has one colour in all pictures."""
    sources = run.ledger.get("sources", {}).values()
    names = list(dict.fromkeys([*run.domains, *(source.get("domain", "") for source in sources)]))
    return theme.series[names.index(domain) % len(theme.series)]


def _x(run: RunData) -> str:
    """Tokens where they were logged, else steps."""
    return "tokens" if len(set(run.series("tokens", "step")[1])) > 1 else "step"
