"""The pictures of a run that learns from rewards: what its samples earn, and what it can do on held-out prompts."""

from __future__ import annotations

from matplotlib.figure import Figure

from lifecycle.report.page.canvas import Theme, canvas, legend, smooth
from lifecycle.report.run.run_data import BOUNDS, RunData


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


def pass_at_k(run: RunData, theme: Theme) -> Figure | None:
    """A panel a domain: pass@k over the steps, with the interval of each as a band."""
    columns = {domain: _ks(run, domain) for domain in run.domains}
    domains = [domain for domain, ks in columns.items() if ks]
    if not domains:
        return None
    figure, panels = canvas(
        theme, "Right within k samples, held out", height=0.9 + 2.6 * len(domains), rows=len(domains)
    )
    for axes, domain in zip(panels, domains, strict=True):
        for number, k in enumerate(columns[domain]):
            color, name = theme.series[number % len(theme.series)], f"valid/{domain}/pass_at_{k}"
            steps, values = run.series(name, "step")
            low, high = (run.series(f"{name}{end}", "step")[1] for end in BOUNDS)
            axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
            axes.plot(steps, values, color=color, marker="o", markersize=4, linewidth=1.6, label=f"pass@{k}")
        axes.set_title(domain, fontsize=10.5, color=theme.ink, loc="left")
        axes.set_ylim(bottom=0)
        legend(axes)
    panels[-1].set_xlabel("steps")
    return figure


def _ks(run: RunData, domain: str) -> list[int]:
    """The numbers of samples that were measured."""
    begin = f"valid/{domain}/pass_at_"
    return sorted(int(end) for name in run.metrics if name.startswith(begin) and (end := name[len(begin) :]).isdigit())
