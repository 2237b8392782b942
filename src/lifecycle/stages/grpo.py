"""Group relative policy optimisation and its relatives: samples of a prompt are compared with one another.

    prompts of the step -> samples (`rollout`) -> rewards -> advantages within each group -> updates

All of that is one step of the run: a checkpoint falls between rollouts only, and a step that is taken again draws,
grades and trains on the same samples. Advantage, ratio objective, normaliser and KL are chosen by their names
(`losses.policy`); conf/stage/ has the combinations that have names of their own (dapo, gspo, ...).
"""

from __future__ import annotations

from torch import Tensor

from lifecycle.batch import PromptBatch, Rollout, StepBatch
from lifecycle.bounds import Keys, due
from lifecycle.losses.policy.advantages import advantages
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.reinforcement import settings, told
from lifecycle.stages.reinforcement.choice_of_prompts import Sampled, Solved, sampled
from lifecycle.stages.reinforcement.experience import Experience, of_all_ranks
from lifecycle.stages.reinforcement.kept_rollouts import keep
from lifecycle.stages.reinforcement.learner import Learner
from lifecycle.stages.reinforcement.phases import Phases
from lifecycle.stages.reinforcement.sampler import PolicySampler
from lifecycle.stages.reinforcement.scoring import SampleScores, Scoring
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
    faults = staticmethod(settings.faults)
    frozen_copies = staticmethod(settings.frozen_copies)

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
        learner, solved = Learner(model=model, policy=policy, drawn=drawn, setup=setup), Solved(drops=drawn.drop_solved)
        super().__init__(
            model=model,
            optimization=optimization,
            setup=setup,
            beside=learner.reference,
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
        experience = Experience.of(
            prompts, rollout, self._advantages(scores), mask_unfinished=self.policy.mask_unfinished
        )
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

        phases = Phases()

        def draw(part: PromptBatch) -> tuple[Rollout, SampleScores]:
            with phases.of("sampling"):
                rollout = self.sampler.rollout(part, self.network, step=step)
            with phases.of("grading"):
                scores = self.scoring.scores(rollout, part)
            phases.tokens += int(rollout.length.sum())
            return rollout, scores

        found, facts = sampled(
            self.solved.without(prompts),
            draw,
            prompts_per_step=self.setup_facts.timeline.at(step).rows,
            varying_prompts=self.drawn.varying_prompts,
            device=self.device,
        )
        return found, {**facts, **phases.told()}

    def _advantages(self, scores: SampleScores) -> Tensor:
        """(N,) of this rank's samples, each compared with the others of its prompt, and with all of the step."""
        (rewards_SR, place_S), mine = of_all_ranks([scores.rewards, scores.place], self.device)
        _, group_S = place_S.unique(return_inverse=True)
        return advantages(rewards_SR, scores.weights_R, group_S, kind=self.policy.advantage)[mine]
