"""Reinforcement learning from the judgement of models: samples are marked by one, and the policy learns from that.

    prompts of the step -> samples (`rollout`) -> marks of a reward model or a judge -> updates

optimise: `grpo` takes the marks for rewards, as stage=grpo does with those of graders; `online_dpo` makes of the best
and the worst sample of each prompt a pair, and trains on it as stage=dpo does (arXiv 2402.04792). All of that is one
step of the run, as in stage=grpo. `stage=ppo` and `stage=spo` take the same rewards.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lifecycle.batch import PromptBatch, StepBatch
from lifecycle.bounds import Keys
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.beside.frozen import Together
from lifecycle.stages.preference.settings import PreferenceKeys
from lifecycle.stages.reinforcement.acting import told
from lifecycle.stages.reinforcement.acting.actor import Actor
from lifecycle.stages.reinforcement.preferences.settings import faults, frozen_copies, trained_copies
from lifecycle.stages.reinforcement.preferences.ways import ByPairs, ByRewards
from lifecycle.stages.reinforcement.settings import PolicyKeys, RewardKeys, SamplingKeys
from lifecycle.stages.run.inheritance import OptimizerState, PeakRate
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.optimization import OptimizationKeys


class Rlaif(Stage):
    """Learning from marks, or from pairs that marks have made. online_dpo: the loss of these."""

    views = frozenset({"prompt"})
    starts_from_parent = True
    takes_over = (PeakRate, OptimizerState)
    measures = told.HELD_OUT
    told = staticmethod(told.held_out)
    faults = staticmethod(faults)
    frozen_copies = staticmethod(frozen_copies)
    trained_copies = staticmethod(trained_copies)

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: Keys[OptimizationKeys],
        drawn: Keys[SamplingKeys],
        graded: Keys[RewardKeys],
        policy: Keys[PolicyKeys],
        optimise: Literal["grpo", "online_dpo"],
        online_dpo: PreferenceKeys,
        setup: Setup,
    ) -> None:
        actor = Actor(drawn, graded, setup, advantage=policy.advantage if optimise == "grpo" else "none")
        way: ByRewards | ByPairs
        if optimise == "grpo":
            way = ByRewards(model=model, policy=policy, actor=actor, setup=setup)
        else:
            way = ByPairs(
                model=model,
                keys=online_dpo,
                mask_unfinished=policy.mask_unfinished,
                actor=actor,
                setup=setup,
                network=lambda: self.network,
            )
        super().__init__(
            model=model,
            optimization=optimization,
            setup=setup,
            beside=Together.of(way.reference, *actor.scoring.beside),
            carried={**actor.carried, **way.carried},
        )
        self.reference = way.kept  # weights that every checkpoint has to hold
        self.actor, self.way = actor, way
        self.measures = actor.measures

    def training_step(self, batch: StepBatch[PromptBatch], batch_idx: int) -> None:
        """One rollout, and the updates on it."""
        self.enter(batch.step)
        sampled, facts = self.actor.act(self, batch)
        self.way.learn(self, batch, sampled, facts)

    def validation_step(self, batch: tuple[PromptBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2 + `measures`,) float64: minus the summed reward of greedy answers, their number, and what is measured of
        them."""
        return self.actor.held_out_sums(self, batch[0])
