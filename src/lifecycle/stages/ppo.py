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

from lifecycle.batch import PromptBatch, StepBatch
from lifecycle.bounds import Keys
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.beside.critic import CRITIC_COPIES, Critic, CriticKeys
from lifecycle.stages.beside.frozen import Together
from lifecycle.stages.reinforcement import settings
from lifecycle.stages.reinforcement.acting import told
from lifecycle.stages.reinforcement.acting.actor import Actor
from lifecycle.stages.reinforcement.acting.scoring import compared
from lifecycle.stages.reinforcement.learning.experience import Experience
from lifecycle.stages.reinforcement.learning.learner import Learner
from lifecycle.stages.reinforcement.learning.values import ValueKeys, ValueLearner
from lifecycle.stages.reinforcement.settings import PolicyKeys, RewardKeys, SamplingKeys
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
    began_as = critic.get("init_from")
    if began_as is not None and critic.get("kind") == "head":
        found.append(
            f"stage.critic.init_from is {began_as}, and stage.critic.kind is head, which is no network of its own: "
            "type stage.critic.kind=separate, or stage.critic.init_from=null"
        )
    if began_as == "reward_model" and (config["stage"].get("reward_model") or {}).get("path") is None:
        found.append(
            "stage.critic.init_from is reward_model, and stage.reward_model.path is null: type "
            "stage.reward_model.path=RUN, a run of stage=reward, or name it in stage.critic.init_from"
        )
    return found


def critic_copies(config: Mapping[str, Any]) -> int:
    """Numbers that a run of this config keeps of each weight: those of a separate critic, and a refreshed reference."""
    separate = (config["stage"].get("critic") or {}).get("kind") == "separate"
    return settings.trained_copies(config) + CRITIC_COPIES * separate


class Ppo(Stage):
    """Reinforcement learning with a critic."""

    views = frozenset({"prompt"})
    starts_from_parent = True
    takes_over = (PeakRate, OptimizerState)
    measures = told.HELD_OUT
    told = staticmethod(told.held_out)
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
        actor = Actor(drawn, graded, setup, advantage=policy.advantage)
        super().__init__(
            model=model,
            optimization=optimization,
            setup=setup,
            beside=Together.of(learner.reference.beside, *actor.scoring.beside),
            critic=beside,
            carried={**learner.carried, **actor.carried},
        )
        self.reference = learner.reference.kept  # its weights are in every checkpoint
        self.learner, self.actor, self.policy = learner, actor, policy
        self.measures = actor.measures

    def training_step(self, batch: StepBatch[PromptBatch], batch_idx: int) -> None:
        """One rollout, and the updates on it."""
        self.enter(batch.step)
        (prompts, rollout, scores), facts = self.actor.act(self, batch)
        earned = compared(scores, kind=self.policy.advantage, device=self.device)  # at the last token of each sample
        experience = Experience.of(prompts, rollout, earned, mask_unfinished=self.policy.mask_unfinished)
        unknown = scores.worth.isnan()  # without a reward there is nothing to learn from
        trained = experience.trained & ~unknown[:, None]
        experience = replace(experience, trained=trained)
        self.actor.keep(self, experience, scores, batch.step)
        self.learner.learn(self, batch, experience, facts)

    def validation_step(self, batch: tuple[PromptBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2 + `measures`,) float64: minus the summed reward of greedy answers, their number, and what is measured of
        them."""
        return self.actor.held_out_sums(self, batch[0])
