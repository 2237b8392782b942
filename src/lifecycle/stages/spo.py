"""Single-stream policy optimisation: one answer to a prompt, compared with what its tracker expects of it.

    candidates of the step -> trackers of new ones -> the prompts that teach most -> an answer to each -> rewards
    ->  advantages over the whole step -> trackers and updates

All of that is one step of the run, and trackers are in every checkpoint. `losses.policy.spo` has the formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lifecycle.batch import PromptBatch, StepBatch
from lifecycle.bounds import Keys
from lifecycle.losses.policy.advantages import advantages
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.beside.frozen import Together
from lifecycle.stages.reinforcement import settings
from lifecycle.stages.reinforcement.acting import told
from lifecycle.stages.reinforcement.acting.actor import Actor, Phases
from lifecycle.stages.reinforcement.learning.experience import Experience, of_all_ranks
from lifecycle.stages.reinforcement.learning.learner import Learner
from lifecycle.stages.reinforcement.settings import PolicyKeys, RewardKeys, SamplingKeys
from lifecycle.stages.reinforcement.single_stream.faults import faults
from lifecycle.stages.reinforcement.single_stream.stream import SingleStream, StreamKeys, in_bounds, in_order
from lifecycle.stages.run.inheritance import OptimizerState, PeakRate
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.optimization import OptimizationKeys


class Spo(Stage):
    """Reinforcement learning on single samples."""

    views = frozenset({"prompt"})
    starts_from_parent = True
    takes_over = (PeakRate, OptimizerState)
    measures = told.HELD_OUT
    told = staticmethod(told.held_out)
    faults = staticmethod(faults)
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
        stream: Keys[StreamKeys],
        setup: Setup,
    ) -> None:
        learner = Learner(model=model, policy=policy, drawn=drawn, setup=setup)
        actor = Actor(drawn, graded, setup, advantage=policy.advantage)
        single_stream = SingleStream(stream, actor.sampler)
        super().__init__(
            model=model,
            optimization=optimization,
            setup=setup,
            beside=Together.of(learner.reference.beside, *actor.scoring.beside),
            carried={**learner.carried, "trackers": single_stream.trackers, **actor.carried},
        )
        self.reference = learner.reference.kept  # its weights are in every checkpoint
        self.learner, self.actor, self.stream = learner, actor, single_stream
        self.policy, self.tracks_first = policy, stream.variant == "paper"
        self.measures = actor.measures

    def training_step(self, batch: StepBatch[PromptBatch], batch_idx: int) -> None:
        """One answer to each chosen prompt, and the updates on them."""
        self.enter(batch.step)
        asked, phases, scoring = PromptBatch.joined(batch.micro), Phases(), self.actor.scoring
        prompts, facts = self.stream.chosen(self, scoring, asked, batch.step, phases)
        with phases.of("sampling"):
            rollout = self.actor.sampler.rollout(prompts, self.network, step=batch.step)
        with phases.of("grading"):
            scores = scoring.scores(self, rollout, prompts)
        phases.tokens += int(rollout.length.sum())
        rollout, scores = in_order(rollout, scores, prompts)
        reward_P = in_bounds(scores)
        advantage_P = self._advantages(reward_P - self.stream.values(prompts))
        experience = Experience.of(prompts, rollout, advantage_P, mask_unfinished=self.policy.mask_unfinished)
        self.actor.keep(self, experience, scores, batch.step)
        facts |= {**told.of_samples(rollout, scores), **self.stream.vary(self, reward_P), **scoring.told()}
        facts |= phases.told()

        def note() -> dict[str, Tensor]:
            return self.stream.note(self, self.learner, prompts, rollout, reward_P)

        if self.tracks_first:
            facts |= note()
        self.learner.learn(self, batch, experience, facts, afterwards=dict if self.tracks_first else note)

    def validation_step(self, batch: tuple[PromptBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2 + `measures`,) float64: minus the summed reward of greedy answers, their number, and what is measured of
        them."""
        return self.actor.held_out_sums(self, batch[0])

    def _advantages(self, above_P: Tensor) -> Tensor:
        """(P,) of this rank's answers, from what each gave above its tracker, in units of the whole step."""
        (above_S,), mine = of_all_ranks([above_P], self.device)
        one, each = torch.ones(1, dtype=torch.float64, device="cpu"), torch.arange(len(above_S), device="cpu")
        return advantages(above_S[:, None], one, each, kind="batch")[mine]
