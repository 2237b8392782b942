"""Through all stages, each as wide as the others: held-out loss above, right and well-formed answers below."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lifecycle.report.page.canvas import Theme, canvas, level, png, style, ticks
from lifecycle.report.stages.results import StageResult, counted, documents

ANSWERED = {"right": "right", "well_formed": "well-formed"}


def draw(stages: Sequence[StageResult], theme: Theme, *, baseline: float | None) -> bytes:
    """The picture as PNG. baseline: share of right answers that knows nothing of a question; None: no question was
    asked."""
    with rc_context(style(theme)):
        return png(_drawn(stages, theme, baseline))


def _drawn(stages: Sequence[StageResult], theme: Theme, baseline: float | None) -> Figure:
    figure, (above, below) = canvas(theme, "What each stage bought", height=5.6, rows=2)
    _losses(above, stages, theme)
    _shares(below, stages, theme, baseline)
    for axes in (above, below):
        axes.grid(visible=False, axis="x")
        axes.set_xlim(0, len(stages))
        axes.set_xticks([])
        for edge in range(1, len(stages)):
            axes.axvline(edge, color=theme.grid, linewidth=1.4)
    below.set_xticks([place + 0.5 for place in range(len(stages))], [stage.name for stage in stages], color=theme.ink)
    return figure


def _losses(axes: Axes, stages: Sequence[StageResult], theme: Theme) -> None:
    """Held-out loss of every domain of documents, where a stage measures it."""
    for domain, color in zip(documents(stages), theme.series, strict=False):
        name: str | None = domain
        for place, stage in enumerate(stages):
            steps, values = stage.held_out(domain)
            if steps:
                axes.plot(_within(stage, place, steps), values, color=color, linewidth=2, marker="o", ms=4, label=name)
                name = None
    axes.set_ylabel("held-out loss, nats a token")
    axes.yaxis.set_major_locator(ticks(5))
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper right", frameon=False, fontsize=9.5)


def _shares(axes: Axes, stages: Sequence[StageResult], theme: Theme, baseline: float | None) -> None:
    """Shares of right and of well-formed answers; of the right ones with their interval at the end of a stage."""
    for (key, words), color in zip(ANSWERED.items(), theme.series[2:], strict=False):
        name: str | None = words
        for place, stage in enumerate(stages):
            found = [(step, known) for step, said in stage.answers.items() if (known := counted(said, key))]
            x = _within(stage, place, [step for step, _ in found])
            width = 2.2 if key == "right" else 1.2
            axes.plot(x, [one.share for _, one in found], color=color, linewidth=width, marker="o", ms=4, label=name)
            name = None
            if found and key == "right":
                _end(axes, x[-1], found[-1][1].share, found[-1][1].interval, color)
    if baseline is not None:
        level(axes, theme, baseline, f"the most frequent answer: {baseline:.0%}", "--", left=True)
    axes.set_ylabel("share of the answers")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(-0.03, 1.08)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", frameon=False, fontsize=9.5)


def _end(axes: Axes, x: float, share: float, interval: tuple[float, float], color: str) -> None:
    low, high = interval
    axes.errorbar(
        [x], [share], [[max(0.0, share - low)], [max(0.0, high - share)]], color=color, capsize=3, linewidth=1
    )
    axes.annotate(
        f"{share:.0%}", (x, high), (-3, 4), textcoords="offset points", color=color, ha="right", weight="bold"
    )


def _within(stage: StageResult, place: int, steps: Sequence[float]) -> list[float]:
    """Places of steps on the axis: a stage is as wide as any other."""
    last = max(stage.run.last("step") or 0, *steps, 1)
    return [place + 0.97 * step / last for step in steps]
