"""The picture of a run that learns from rewards: what its samples earn, and what greedy answers to held-out prompts."""

from __future__ import annotations

from matplotlib.figure import Figure

from lifecycle.report.page.canvas import Theme, canvas, legend, smooth
from lifecycle.report.run.run_data import RunData


def rewards(run: RunData, theme: Theme) -> Figure | None:
    """Two panels over the steps: the reward, and how many prompts teach beside how certain the policy is."""
    steps, values = run.series("rollout/reward", "step")
    if not steps:
        return None
    figure, (upper, lower) = canvas(theme, "Reward of the samples", height=5.2, rows=2, columns=1)
    upper.plot(steps, values, color=theme.series[0], alpha=0.28, linewidth=0.8)
    upper.plot(steps, smooth(values), color=theme.series[0], linewidth=2, label="samples, smoothed")
    for number, domain in enumerate(run.domains, start=1):
        x, held = run.series(f"valid/{domain}/reward", "step")
        color = theme.series[number % len(theme.series)]
        upper.plot(x, held, color=color, marker="o", markersize=4, label=f"greedy, held out: {domain}")
    told = {"rollout/groups_varying": "share of prompts that teach", "policy/entropy": "entropy (nats)"}
    for number, (name, label) in enumerate(told.items()):
        x, y = run.series(name, "step")
        if x:
            lower.plot(x, smooth(y), color=theme.series[number % len(theme.series)], linewidth=1.6, label=label)
    lower.set_xlabel("steps")
    legend(upper)
    legend(lower)
    return figure
