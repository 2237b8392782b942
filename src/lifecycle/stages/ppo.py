"""Proximal policy optimisation with a critic: each token is compared with what was to be expected before it.

    prompts of the step -> samples -> scores -> values of a critic -> advantages by token -> updates of both

All of that is one step of the run, as in `stage=grpo`, and so is what trains the policy. The critic (`stages.beside
.critic`) is a score on the policy, or a network of its own; what is exported has neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lifecycle.batch import PromptBatch, StepBatch
from lifecycle.bounds import Keys
from lifecycle.losses.policy.advantages import advantages
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.beside.critic import Critic, CriticKeys
from lifecycle.stages.reinforcement import settings, told
from lifecycle.stages.reinforcement.experience import Experience, of_all_ranks
from lifecycle.stages.reinforcement.grading import Graded, Grading
from lifecycle.stages.reinforcement.learner import Learner
from lifecycle.stages.reinforcement.sampler import PolicySampler
from lifecycle.stages.reinforcement.settings import PolicyKeys, RewardKeys, SamplingKeys
from lifecycle.stages.reinforcement.values import ValueKeys, ValueLearner
from lifecycle.stages.run.inheritance import OptimizerState, PeakRate
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.optimization import OptimizationKeys


def faults(config: Mapping[str, Any]) -> list[str]:
    """Values that do not work together."""
    found, critic = settings.faults(config), config["stage"].get("critic") or {}
    if (config.get("hardware") or {}).get("strategy") == "fsdp":
        found.append(
            "hardware.strategy is fsdp, and a critic beside the policy is not sharded: type hardware.strategy=ddp, or "
            "stage=grpo, which has no critic"
        )
    if critic.get("kind") == "separate" and config.get("adapter"):
        found.append(
            "stage.critic.kind is separate, which trains a whole second network, and adapter is there to train few "
            "weights: type stage.critic.kind=head, or adapter=none"
        )
    return found


def critic_copies(config: Mapping[str, Any]) -> int:
    """Numbers that a run of this config keeps of each weight of a separate critic: weight, gradient, two moments."""
    return 4 * ((config["stage"].get("critic") or {}).get("kind") == "separate")


class Ppo(Stage):
    """Reinforcement learning with a critic."""

    views = frozenset({"prompt"})
    starts_from_parent = True
    takes_over = (PeakRate, OptimizerState)
    measures = told.HELD_OUT
    faults = staticmethod(faults)
    frozen_copies = staticmethod(settings.frozen_copies)
    trained_copies = staticmethod(critic_copies)

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: Keys[OptimizationKeys],
        drawn: Keys[SamplingKeys],
        graded: Keys[RewardKeys],
        policy: Keys[PolicyKeys],
        values: Keys[ValueKeys],
        critic: CriticKeys,
        setup: Setup,
    ) -> None:
        beside = Critic(config=model, keys=critic, setup=setup)
        judge = ValueLearner(critic=beside, keys=values, kl_kind=policy.kl.kind)
        learner = Learner(model=model, policy=policy, drawn=drawn, setup=setup, values=judge)
        super().__init__(
            model=model,
            optimization=optimization,
            setup=setup,
            beside=learner.reference,
            critic=beside,
            carried={"kl_coefficient": learner.coefficient},
        )
        self.learner, self.sampler, self.grading = learner, PolicySampler(drawn, setup), Grading(graded, setup)
        self.policy = policy

    def training_step(self, batch: StepBatch[PromptBatch], batch_idx: int) -> None:
        """One rollout, and the updates on it."""
        self.enter(batch.step)
        prompts = PromptBatch.joined(batch.micro)
        rollout = self.sampler.rollout(prompts, self.network, step=batch.step)
        graded = self.grading.graded(rollout, prompts)
        experience = Experience.of(prompts, rollout, self._scores(graded), mask_unfinished=self.policy.mask_unfinished)
        trained = experience.trained & ~graded.total.isnan()[:, None]  # without a reward there is nothing to learn from
        self.take_updates(
            batch,
            self.learner.updates(self, replace(experience, trained=trained)),
            self.learner.loss_sum(self),
            told=lambda: {**told.of_rollout(rollout, graded), **self.learner.end_step(len(rollout))},
        )

    def validation_step(self, batch: tuple[PromptBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2 + HELD_OUT,) float64: minus the summed reward of greedy answers, their number, and what is measured of
        them."""
        prompts, _ = batch
        rollout = self.sampler.greedy(prompts, self.network)
        return told.held_out_sums(rollout, self.grading.graded(rollout, prompts)).to(self.device)

    def _scores(self, graded: Graded) -> Tensor:
        """(N,) of this rank's samples: what the last token of each is rewarded with."""
        (rewards_SR, place_S), mine = of_all_ranks([graded.rewards, graded.place], self.device)
        _, group_S = place_S.unique(return_inverse=True)
        weights_R = torch.tensor(graded.weights, dtype=torch.float64, device="cpu")
        return advantages(rewards_SR, weights_R, group_S, kind=self.policy.advantage)[mine]
