"""Group relative policy optimisation and its relatives: samples of a prompt are compared with one another.

    prompts of the step -> samples (`rollout`) -> rewards -> advantages within each group -> updates

All of that is one step of the run: a checkpoint falls between rollouts only, and a step that is taken again draws,
grades and trains on the same samples. Advantage, ratio objective, normaliser and KL are chosen by their names
(`losses.policy`); conf/stage/ has the combinations that have names of their own (dapo, gspo, ...).
"""

from __future__ import annotations

from torch import Tensor

from lifecycle.batch import PromptBatch, StepBatch
from lifecycle.bounds import Keys
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.beside.frozen import Together
from lifecycle.stages.reinforcement import settings
from lifecycle.stages.reinforcement.acting import told
from lifecycle.stages.reinforcement.acting.actor import Actor
from lifecycle.stages.reinforcement.learning.learner import Learner
from lifecycle.stages.reinforcement.settings import PolicyKeys, RewardKeys, SamplingKeys
from lifecycle.stages.run.inheritance import OptimizerState, PeakRate
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.optimization import OptimizationKeys


class Grpo(Stage):
    """Reinforcement learning on groups of samples."""

    views = frozenset({"prompt"})
    starts_from_parent = True
    takes_over = (PeakRate, OptimizerState)
    measures = told.HELD_OUT
    told = staticmethod(told.held_out)
    faults = staticmethod(settings.faults)
    frozen_copies = staticmethod(settings.frozen_copies)
    trained_copies = staticmethod(settings.trained_copies)

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: Keys[OptimizationKeys],
        drawn: Keys[SamplingKeys],
        graded: Keys[RewardKeys],
        policy: Keys[PolicyKeys],
        setup: Setup,
    ) -> None:
        learner = Learner(model=model, policy=policy, drawn=drawn, setup=setup)
        actor = Actor(drawn, graded, setup, advantage=policy.advantage)
        super().__init__(
            model=model,
            optimization=optimization,
            setup=setup,
            beside=Together.of(learner.reference.beside, *actor.scoring.beside),
            carried={**learner.carried, **actor.carried},
        )
        self.reference = learner.reference.kept  # its weights are in every checkpoint
        self.learner, self.actor, self.policy = learner, actor, policy
        self.measures = actor.measures

    def training_step(self, batch: StepBatch[PromptBatch], batch_idx: int) -> None:
        """One rollout, and the updates on it."""
        self.enter(batch.step)
        sampled, facts = self.actor.act(self, batch)
        experience = self.actor.experience(self, sampled, self.policy, batch.step)
        self.learner.learn(self, batch, experience, facts)

    def validation_step(self, batch: tuple[PromptBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2 + `measures`,) float64: minus the summed reward of greedy answers, their number, and what is measured of
        them."""
        return self.actor.held_out_sums(self, batch[0])
