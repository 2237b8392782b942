"""Forgetting of the parent's domains, and the guard's decisions on it: pure functions of measurements.

    forgetting of a domain = (perplexity - perplexity at start) / perplexity at start
    level of a measurement, by the worst domain:  fine < watch < act < stop, at the thresholds of the root key `guard`

From `act` on, one action at a time, the next after `patience` further measurements: more replay, up to `replay_max`;
else half the rate, down to an eighth. From `stop` on the run ends with the last checkpoint that was below, if `restore`
is among the actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lifecycle.config.schema import Action, Guard

Severity = Literal["fine", "watch", "act", "stop"]
LEAST_LR_SCALE = 0.125


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One validation of the retained and the new domains, and the decision after it.

    share: of the replayed tokens, and rate: the factor on the learning rate (lr_scale), before the decision. to: the
    value that the action sets (`restore`: the step whose checkpoint the run ends with, 0 if none was good). binds: the
    step from which the action holds.
    """

    step: int
    perplexity: dict[str, float]
    forgetting: dict[str, float]
    level: Severity
    share: float
    rate: float
    action: Action | None = None
    to: float | None = None
    binds: int | None = None
    advice: str = ""

    @property
    def worst(self) -> float:
        """The largest forgetting of any domain; 0 without domains."""
        return max(self.forgetting.values(), default=0.0)

    def plain(self) -> dict[str, Any]:
        """The measurement as plain containers, for forgetting.json and the checkpoint."""
        return asdict(self)


@dataclass
class History:
    """All measurements of a run, the first of them before its first step."""

    measurements: list[Measurement] = field(default_factory=list)

    @property
    def start(self) -> Mapping[str, float]:
        """The parent's perplexities by domain; empty before they are measured."""
        return self.measurements[0].perplexity if self.measurements else {}

    @property
    def since_action(self) -> int:
        """Measurements after the last action; those of a run that has not acted count from its beginning."""
        acted = [n for n, m in enumerate(self.measurements) if m.action is not None]
        return len(self.measurements) - 1 - acted[-1] if acted else len(self.measurements)

    def safe_steps(self, steps: Sequence[int]) -> list[int]:
        """Those of `steps` whose nearest measurements, before and after, were both below `stop`."""
        out = []
        for step in steps:
            before = [m for m in self.measurements if m.step <= step]
            after = [m for m in self.measurements if m.step >= step]
            if before and after and all(m.level != "stop" for m in (before[-1], after[0])):
                out.append(step)
        return out


def level_of(worst: float, spec: Guard) -> Severity:
    """The level of the worst domain's forgetting."""
    return "stop" if worst >= spec.stop else "act" if worst >= spec.act else "watch" if worst >= spec.watch else "fine"


def assess(
    step: int,
    perplexity: Mapping[str, float],
    retained: Sequence[str],
    history: History,
    spec: Guard,
    *,
    share: float,
    rate: float,
) -> Measurement:
    """The measurement of `step` with its level, the action that the spec allows now, and advice in words."""
    start = history.start or perplexity
    forgetting = {name: (perplexity[name] - start[name]) / start[name] for name in retained if name in perplexity}
    level = level_of(max(forgetting.values(), default=0.0), spec)
    action, to = _action(level, history, spec, share=share, rate=rate)
    return Measurement(
        step=step,
        perplexity=dict(perplexity),
        forgetting=forgetting,
        level=level,
        share=share,
        rate=rate,
        action=action,
        to=to,
        advice="" if action else _advice(level, history, spec, share=share),
    )


def _action(
    level: Severity, history: History, spec: Guard, *, share: float, rate: float
) -> tuple[Action | None, float | None]:
    if level == "stop" and "restore" in spec.actions:
        return "restore", None
    if level in ("fine", "watch") or history.since_action < spec.patience:
        return None, None
    if "replay" in spec.actions and share < spec.replay_max - 1e-9:
        return "replay", min(share + spec.replay_step, spec.replay_max)
    if "rate" in spec.actions and rate > LEAST_LR_SCALE:
        return "rate", rate / 2
    return None, None


def _advice(level: Severity, history: History, spec: Guard, *, share: float) -> str:
    if level in ("fine", "watch"):
        return ""
    if spec.actions and history.since_action < spec.patience:
        return "the last action is given time"
    if "replay" not in spec.actions and share < spec.replay_max - 1e-9:
        more = min(share + spec.replay_step, spec.replay_max)
        return f"replay more: stage.replay.share={more:g}, or let the guard: guard.actions=[replay]"
    if "rate" not in spec.actions:
        return "lower the rate: half of stage.peak_ratio, or let the guard: guard.actions=[replay,rate]"
    return "the guard can do no more: train on fewer tokens, or begin with more replay"
