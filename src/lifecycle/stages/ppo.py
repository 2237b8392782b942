"""Proximal policy optimisation with a critic: each token is compared with what was to be expected before it.

    prompts of the step -> samples -> scores -> values of a critic -> advantages by token -> updates of both

All of that is one step of the run, as in `stage=grpo`, and so is what trains the policy. The critic (`stages.beside
.critic`) is a score on the policy, or a network of its own; what is exported has neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lifecycle.batch import PromptBatch, Rollout, StepBatch
from lifecycle.bounds import Keys, due
from lifecycle.losses.policy.advantages import advantages
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.beside.critic import Critic, CriticKeys
from lifecycle.stages.reinforcement import settings, told
from lifecycle.stages.reinforcement.choice_of_prompts import Sampled, Solved, sampled
from lifecycle.stages.reinforcement.experience import Experience, of_all_ranks
from lifecycle.stages.reinforcement.kept_rollouts import keep
from lifecycle.stages.reinforcement.learner import Learner
from lifecycle.stages.reinforcement.sampler import PolicySampler
from lifecycle.stages.reinforcement.scoring import SampleScores, Scoring
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
        solved = Solved(drops=drawn.drop_solved)
        super().__init__(
            model=model,
            optimization=optimization,
            setup=setup,
            beside=learner.reference,
            critic=beside,
            carried={"kl_coefficient": learner.coefficient, "solved": solved},
        )
        self.learner, self.solved, self.sampler = learner, solved, PolicySampler(drawn, setup)
        self.scoring = Scoring(graded, setup, longest=drawn.sampling.max_new_tokens)
        self.policy, self.drawn = policy, drawn

    def training_step(self, batch: StepBatch[PromptBatch], batch_idx: int) -> None:
        """One rollout, and the updates on it."""
        self.enter(batch.step)
        (prompts, rollout, scores), facts = self._sampled(PromptBatch.joined(batch.micro), batch.step)
        self.solved.note((prompts, rollout, scores), self.device)
        experience = Experience.of(prompts, rollout, self._scores(scores), mask_unfinished=self.policy.mask_unfinished)
        trained = experience.trained & ~scores.total.isnan()[:, None]  # without a reward there is nothing to learn from
        experience = replace(experience, trained=trained)
        if due(batch.step + 1, self.drawn.keep_rollouts):
            world = self.trainer.world_size
            keep(experience, scores, self.setup_facts, step=batch.step + 1, rank=self.global_rank, world=world)
        self.take_updates(
            batch,
            self.learner.updates(self, experience),
            self.learner.loss_sum(self),
            told=lambda: {**facts, **self.learner.end_step(len(rollout))},
        )

    def validation_step(self, batch: tuple[PromptBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2 + HELD_OUT,) float64: minus the summed reward of greedy answers, their number, and what is measured of
        them."""
        prompts, _ = batch
        rollout = self.sampler.greedy(prompts, self.network)
        return told.held_out_sums(rollout, self.scoring.scores(rollout, prompts)).to(self.device)

    def _sampled(self, prompts: PromptBatch, step: int) -> tuple[Sampled, dict[str, Tensor]]:
        """The samples that are trained on, and what is told of all that were drawn."""

        def draw(part: PromptBatch) -> tuple[Rollout, SampleScores]:
            rollout = self.sampler.rollout(part, self.network, step=step)
            return rollout, self.scoring.scores(rollout, part)

        return sampled(
            self.solved.without(prompts),
            draw,
            prompts_per_step=self.setup_facts.timeline.at(step).rows,
            varying_prompts=self.drawn.varying_prompts,
            device=self.device,
        )

    def _scores(self, scores: SampleScores) -> Tensor:
        """(N,) of this rank's samples: what the last token of each is rewarded with."""
        (rewards_SR, place_S), mine = of_all_ranks([scores.rewards, scores.place], self.device)
        _, group_S = place_S.unique(return_inverse=True)
        return advantages(rewards_SR, scores.weights_R, group_S, kind=self.policy.advantage)[mine]
