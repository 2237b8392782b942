"""Weights of terms of the loss that move in a run, which every checkpoint holds: of the KL, and of the entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from lifecycle.duration import Segment
from lifecycle.losses.policy.entropy import AdaptiveEntropy
from lifecycle.losses.policy.kl import AdaptiveKl
from lifecycle.stages.reinforcement.learning.experience import Experience
from lifecycle.stages.reinforcement.settings import KlKeys, PolicyKeys
from lifecycle.stages.step import mean_parts
from lifecycle.stages.step.collectives import sum_over_ranks


class KlCoefficient:
    """The weight of the KL, which may be moved towards a target after every step, and set by the phases of the run; a
    checkpoint holds it."""

    def __init__(self, keys: KlKeys) -> None:
        self.value = self._own = keys.coefficient
        self._adaptive = None if keys.target is None else AdaptiveKl(target=keys.target, horizon=keys.horizon)

    def enter(self, step: int, phase: Segment) -> None:
        """Take the phase's in step `step`, counted from 0; one that moves goes on from that of the phase's first
        step."""
        if self._adaptive is None:
            self.value = self._own if phase.kl_coefficient is None else phase.kl_coefficient
        elif step == phase.step and phase.kl_coefficient is not None:
            self.value = phase.kl_coefficient

    def measured(self, kl_2: Tensor, samples: int) -> None:
        """Move it, where it has a target. kl_2: (2,) sum and count of the step on this rank. Every rank must call."""
        if self._adaptive is not None:
            total, count, number = sum_over_ranks(torch.cat([kl_2, kl_2.new_tensor([samples])])).tolist()
            if count:
                self.value = self._adaptive.adapted(self.value, total / count, samples=int(number))

    def state(self) -> float:
        """For the checkpoint."""
        return self.value

    def restore(self, state: float) -> None:
        """Go on from `state`."""
        self.value = state


class EntropyCoefficient:
    """The weight of the entropy, which a target moves by the entropy of each step's samples."""

    def __init__(self, keys: PolicyKeys) -> None:
        self.value = self.weight = keys.entropy  # the coefficient, and what it weighs in the step
        self._adaptive = None
        if keys.entropy_target is not None:
            self._adaptive = AdaptiveEntropy(
                target=keys.entropy_target, delta=keys.entropy_delta, most=keys.entropy_most
            )

    @property
    def moves(self) -> bool:
        """Whether it has a target."""
        return self._adaptive is not None

    def enter(self, experience: Experience, device: torch.device) -> None:
        """Take the weight of the step with these samples, and the coefficient of the next. Every rank must call."""
        if self._adaptive is None:
            return
        mine = mean_parts.of_values(experience.rollout.entropy[experience.trained])
        total, count = sum_over_ranks(mine.to(device)).tolist()
        if count:
            self.weight = self._adaptive.weight(self.value, total / count)
            self.value = self._adaptive.adapted(self.value, total / count)

    def state(self) -> float:
        """For the checkpoint."""
        return self.value

    def restore(self, state: float | None) -> None:
        """Go on from `state`; checkpoints of older versions have none."""
        if state is not None:
            self.value = state
