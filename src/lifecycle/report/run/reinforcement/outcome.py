"""What a run that learns from its own samples has gained: held-out answers, and the samples that it was trained on.

Held-out data is compared between its first and its last measurement. Samples are compared between the first and the
last ten steps, in the mean, for a step's samples are few.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from lifecycle.report.page.format import count, number, share
from lifecycle.report.page.render import Element, Paragraph, Sheet
from lifecycle.report.run.run_data import BOUNDS, RunData, Series
from lifecycle.rewards.graders import KNOW_THE_ANSWER
from lifecycle.rewards.interval import wilson

STEPS = 10
"""Of a mean over samples."""
OF_SAMPLES = {
    "rollout/reward": "reward",
    "policy/kl": "KL to the reference, nats a token",
    "rollout/length": "length, tokens",
    "policy/entropy": "entropy of the policy, nats a token",
    "rollout/stopped": "came to their own end",
    "rollout/groups_varying": "prompts whose answers differ in reward",
}
"""What is told of the samples, in words."""
SHARES = ("rollout/stopped", "rollout/groups_varying")
OF_HELD_OUT = {
    "sampled_reward": "reward of samples",
    "stopped": "came to their own end",
    "length": "length, tokens",
}
"""What is told of held-out answers beside their reward, in words."""
NOTE = (
    "Held-out answers are greedy, but for pass@k and the reward of samples; first and last measurement. Brackets hold "
    f"95 % intervals. Samples of training: means of the first and of the last {STEPS} steps (of fewer in a short run)."
)


def outcome(run: RunData) -> list[Element]:
    """The table with its note; nothing for a run that has not sampled."""
    columns, rows = outcome_table(run)
    return [Sheet(columns, rows), Paragraph(NOTE, "note")] if rows else []


def outcome_table(run: RunData) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: held-out data by domain, then the samples of training."""
    rows = [row for domain, measured in run.measures.items() for row in _held_out(run, domain, measured)]
    rows += [row for name, words in _of_samples(run).items() for row in _sampled(run, name, words)]
    return ["", "at the start", "at the end"], rows


def reached(run: RunData) -> str:
    """The held-out reward of each domain, from the first measurement to the last, in words."""
    parts = []
    for domain in run.domains:
        _, values = run.series(f"valid/{domain}/reward", "step")
        if values:
            shown = share if is_share(run) else number
            begun = f"{shown(values[0])} to " if len(values) > 1 else ""
            parts.append(f"{begun}{shown(values[-1])} on {domain}")
    if not parts:
        return ""
    return ("right held-out answers " if is_share(run) else "held-out reward ") + ", ".join(parts)


def of_samples(run: RunData, name: str) -> Series:
    """Steps and values of what is told of samples. Answers to held-out prompts stand in rows of their own."""
    taken = set(run.series("rollout/reward", "step")[0])
    pairs = [(step, value) for step, value in zip(*run.series(name, "step"), strict=True) if step in taken]
    return [step for step, _ in pairs], [value for _, value in pairs]


def is_share(run: RunData) -> bool:
    """Whether the reward of an answer is 1 where it is right, else 0: that of a single grader that knows the answer."""
    own = [source.get("rewards") for source in (run.setting("data.sources") or {}).values()]
    rewards = run.setting("stage.rewards")
    named = {rewards: 1.0} if isinstance(rewards, str) else rewards or {}
    shaped = any(own) or run.setting("stage.overlong_buffer") is not None
    return not shaped and len(named) == 1 and all(n in KNOW_THE_ANSWER and w == 1 for n, w in named.items())


def _held_out(run: RunData, domain: str, measured: Mapping[str, float]) -> list[list[str]]:
    """A row for each measure but the loss, which is minus the reward."""
    passed = sorted((n for n in measured if n.startswith("pass_at_")), key=lambda name: int(name[len("pass_at_") :]))
    named = {"reward": "right"} if is_share(run) else {}
    named = {"reward": "reward", **named, **{name: name.replace("pass_at_", "pass@") for name in passed}, **OF_HELD_OUT}
    rows = []
    for name, words in named.items():
        if name not in measured:
            continue
        cells = [_measured(run, domain, name, at) for at in (0, -1)]
        several = len(run.series(f"valid/{domain}/{name}", "step")[1]) > 1
        rows.append([f"held out, {domain}: {words}", cells[0] if several else "–", cells[1]])
    return rows


def _measured(run: RunData, domain: str, name: str, at: int) -> str:
    """The first (at 0) or the last (at -1) value, with its interval where one is known."""
    steps, values = run.series(f"valid/{domain}/{name}", "step")
    if not values:
        return "–"
    value = values[at]
    later = f", step {count(steps[0])}" if at == 0 and steps[0] else ""
    if name == "reward" and is_share(run):
        items = run.held_out_items.get(domain)
        return share(value) + (_between(wilson(value, items)) if items else "") + later
    if name == "stopped" or name.startswith("pass_at_"):
        ends = [run.series(f"valid/{domain}/{name}{end}", "step")[1] for end in BOUNDS]
        return share(value) + (_between((ends[0][at], ends[1][at])) if all(ends) else "") + later
    return number(value, 1 if name == "length" else 3) + later


def _between(interval: tuple[float, float]) -> str:
    low, high = (f"{100 * end:.1f}" for end in interval)
    return f" ({low} to {high})"


def _of_samples(run: RunData) -> dict[str, str]:
    """What is told of the samples; each reward by its name where there are several."""
    of_rewards = [n for n in run.metrics if n.startswith("reward/") and n.count("/") == 1]
    named = {name: f"reward {name.removeprefix('reward/')}" for name in of_rewards}
    return {"rollout/reward": OF_SAMPLES["rollout/reward"], **(named if len(named) > 1 else {}), **OF_SAMPLES}


def _sampled(run: RunData, name: str, words: str) -> list[list[str]]:
    _, values = of_samples(run, name)
    if not values:
        return []
    few = max(1, min(STEPS, len(values) // 2))
    shown = share if name in SHARES else lambda value: number(value, 1 if name == "rollout/length" else 3)
    begun = shown(fmean(values[:few])) if len(values) > 1 else "–"
    return [[f"samples: {words}", begun, shown(fmean(values[-few:]))]]
