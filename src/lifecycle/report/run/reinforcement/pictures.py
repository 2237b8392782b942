"""The pictures of a run that learns from rewards: what its samples and held-out answers earn, how the policy moves."""

from __future__ import annotations

from matplotlib.figure import Figure

from lifecycle.report.page.canvas import Theme, canvas, curve, legend, ticks, tokens_axis
from lifecycle.report.run.reinforcement.outcome import of_samples
from lifecycle.report.run.run_data import BOUNDS, RunData

PANELS = {
    "policy/kl": "KL to the reference (nats a token)",
    "policy/entropy": "entropy (nats a token)",
    "rollout/length": "length of an answer (tokens)",
    "rollout/stopped": "share that came to their own end",
    "rollout/groups_varying": "share of prompts that teach",
    "critic/explained_variance": "explained variance of the critic",
}
"""What the picture of the policy has a panel of, where it was logged."""
FROM_ZERO = ("rollout/length", "rollout/stopped", "rollout/groups_varying")
"""Of these, whose axes begin at 0."""


def rewards(run: RunData, theme: Theme) -> Figure | None:
    """The reward of the samples of each step, and of greedy answers to held-out prompts."""
    steps, values = of_samples(run, "rollout/reward")
    if not steps:
        return None
    figure, (axes,) = canvas(theme, "Reward", height=3.9)
    curve(axes, steps, values, theme.series[0], label="samples, smoothed")
    for number, domain in enumerate(run.domains, start=1):
        x, held = run.series(f"valid/{domain}/reward", "step")
        color = theme.series[number % len(theme.series)]
        axes.plot(x, held, color=color, marker="o", markersize=4, label=f"greedy, held out: {domain}")
    axes.yaxis.set_major_locator(ticks(6))
    tokens_axis(axes, "step")
    legend(axes, where="best")
    return figure


def policy(run: RunData, theme: Theme) -> Figure | None:
    """A panel for each number of the policy and its samples, over the steps."""
    found = {name: series for name in PANELS if (series := of_samples(run, name))[0]}
    if not found:
        return None
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    figure, panels = canvas(theme, "The policy and its samples", height=0.6 + 2.1 * rows, rows=rows, columns=columns)
    for axes, (name, (steps, values)) in zip(panels, found.items(), strict=False):
        curve(axes, steps, values, theme.series[0], width=1.8)
        axes.set_title(PANELS[name], fontsize=10.5, color=theme.ink, loc="left")
        if name in FROM_ZERO:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(ticks(4))
        tokens_axis(axes, "step", count=4)
    for axes in panels[len(found) :]:
        axes.set_visible(False)
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
        legend(axes, where="best")
    panels[-1].set_xlabel("steps")
    return figure


def _ks(run: RunData, domain: str) -> list[int]:
    """The numbers of samples that were measured."""
    begin = f"valid/{domain}/pass_at_"
    return sorted(int(end) for name in run.metrics if name.startswith(begin) and (end := name[len(begin) :]).isdigit())
