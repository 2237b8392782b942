"""How the weights of a run change: its optimizer, the learning rate of every step, and which steps are skipped.

    rate of a step = peak * schedule(step) * rate of the run's phase * scale            (scale: what a guard decided)

Made once a run, with the state that a checkpoint holds of it; the optimizer's own state is saved by Lightning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lifecycle.bounds import FromZero
from lifecycle.duration import Timeline
from lifecycle.errors import UserError
from lifecycle.optim import AdamW, Muon, Schedule, clip_gradients
from lifecycle.optim.carry import CRITIC, carry_over
from lifecycle.optim.schedule import of_another_length
from lifecycle.stages.step.bad_steps import NormRatio, Skipping


@dataclass(frozen=True, kw_only=True)
class OptimizationKeys:
    """Keys of every training stage: how its weights change (conf/stage/_training.yaml, conf/optimizer).

    max_skipped: bad steps that a run may skip. max_norm_ratio: a gradient norm so many times the usual one makes a step
    a bad one; None: none does.
    """

    optimizer: AdamW | Muon
    schedule: Schedule
    max_skipped: FromZero
    max_norm_ratio: NormRatio | None


def _at_rate(spec: AdamW | Muon, lr: float | None) -> AdamW | Muon:
    """The settings with one rate for all parameters; None: as they are."""
    if lr is None:
        return spec
    if isinstance(spec, Muon):
        return replace(spec, lr=lr, adamw_lr=None, embedding_lr=None)
    return replace(spec, lr=lr, embedding_lr=None)


class Optimization:
    """Optimizer, schedule and skipping of bad steps: everything between the gradients of a step and its weights.

    timeline: the steps that lengths of the schedule are shares of. Raises `UserError` for a schedule that is longer
    than the run.
    """

    def __init__(self, keys: OptimizationKeys, timeline: Timeline) -> None:
        self.skipping = Skipping(max_skipped=keys.max_skipped, max_norm_ratio=keys.max_norm_ratio)
        self._spec, self._timeline = keys.optimizer, timeline
        self._course = keys.schedule.course(timeline.steps, timeline.steps_of, timeline.last_steps_of)

    def build(
        self,
        model: nn.Module,
        initial: Mapping[str, Any] | None,
        critic: nn.Module | None = None,
        critic_lr: float | None = None,
    ) -> torch.optim.Optimizer:
        """The optimizer over the trained parameters of `model`; `initial`: the state of a parent's, to go on with.
        critic: is trained beside it, at `critic_lr` where that is not None, in groups named `critic_...`."""
        optimizer = self._spec.build(model)
        if initial is not None:
            carry_over(initial, optimizer)
        if critic is not None:
            for group in _at_rate(self._spec, critic_lr).build(critic).param_groups:
                optimizer.add_param_group({**group, "name": f"{CRITIC}{group['name']}"})
        return optimizer

    def set_rates(self, groups: Iterable[dict[str, Any]], step: int, *, scale: float) -> float:
        """Give every parameter group its rate, and those of Muon a momentum that moves, in step `step` (from 0);
        returns the rate of `stage.optimizer.lr`."""
        planned = min(step, self._timeline.steps - 1)  # the last row of the data may come a little later
        factor = self._course(planned) * self._timeline.rate(step) * scale
        for group in groups:
            group["lr"] = group["lr_peak"] * factor
            if isinstance(self._spec, Muon) and self._spec.momentum_start is not None and "momentum" in group:
                group["momentum"] = self._spec.momentum_at(planned / self._timeline.steps)
        return factor * self._peak

    def clip(self, parameters: Iterable[Tensor]) -> Tensor:
        """Clip the gradients to `grad_clip` in place; their norm before that."""
        return clip_gradients(parameters, self._spec.grad_clip)

    @property
    def _peak(self) -> float:
        return self._spec.lr or 0.0

    def state(self, taken: int) -> dict[str, Any]:
        """The state after `taken` steps in plain values, for the checkpoint."""
        return {"skipping": self.skipping.state(), "course": self._course.state(taken)}

    def restore(self, state: Mapping[str, Any], taken: int, device: torch.device) -> str | None:
        """Restore what `state` returned after `taken` steps. Returns a notice for the user where the length of the run,
        and with it the rate, has changed since; else None. Raises UserError where every further rate would be zero."""
        self.skipping.restore(state["skipping"], device)
        if "course" not in state:  # a checkpoint of an older version
            return None
        turn = self._course.restore(state["course"], taken)
        if turn and turn.stays_at_zero:
            raise UserError(
                f"the run has {self._timeline.steps:,} steps now, and its rate was zero after {taken:,}: it would "
                "learn nothing. Type stage.schedule.stretch=true too, which takes the rate of the longer run, "
                "or start another run from this one (init_from)"
            )
        return of_another_length(turn, self._peak, self._timeline.steps) if turn else None
