"""Samples of a step, drawn from the policy and marked, with what it took.

perf/sampling_s, perf/grading_s    seconds of the step; the rest of perf/step_s is scoring by policy and reference, and
                                   the updates
rollout/tokens_per_second          tokens of completions over the seconds of sampling
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from lifecycle.batch import PromptBatch, Rollout, StepBatch
from lifecycle.bounds import due
from lifecycle.losses.policy.advantages import AdvantageName
from lifecycle.stages.base import Stage
from lifecycle.stages.reinforcement.acting import told
from lifecycle.stages.reinforcement.acting.choice_of_prompts import Sampled, Solved, sampled
from lifecycle.stages.reinforcement.acting.kept_rollouts import keep
from lifecycle.stages.reinforcement.acting.sampler import PolicySampler
from lifecycle.stages.reinforcement.acting.scoring import SampleScores, Scoring, compared
from lifecycle.stages.reinforcement.learning.experience import Experience, prompt_of
from lifecycle.stages.reinforcement.settings import PolicyKeys, RewardKeys, SamplingKeys
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step import mean_parts
from lifecycle.stages.step.collectives import sum_over_ranks
from lifecycle.stages.step.watched import Carried

HELD_OUT_DRAWS = "held-out samples"
"""Of the seeds of the draws of a measurement."""


class Actor:
    """What a stage holds to have samples. drawn, graded: how they are drawn and marked. advantage: what they are
    compared by. solved: the prompts that are not asked again."""

    def __init__(self, drawn: SamplingKeys, graded: RewardKeys, setup: Setup, *, advantage: AdvantageName) -> None:
        self.drawn, self.graded, self._setup = drawn, graded, setup
        self.sampler, self.solved = PolicySampler(drawn, setup), Solved(drops=drawn.drop_solved)
        self.measures = told.measures(setup.validation_samples)
        self._said = False
        longest = drawn.sampling.max_new_tokens
        self.scoring = Scoring(graded, setup, longest=longest, apart=advantage == "gdpo")

    @property
    def carried(self) -> dict[str, Carried]:
        """What every checkpoint of a stage holds of it."""
        return {"solved": self.solved, "environment": self.sampler, **self.scoring.carried}

    def act(self, stage: Stage, batch: StepBatch[PromptBatch]) -> tuple[Sampled, dict[str, Tensor]]:
        """The samples that are trained on, and what is told of all that were drawn. Every rank must call."""
        phases, prompts = Phases(), PromptBatch.joined(batch.micro)

        def draw(part: PromptBatch) -> tuple[Rollout, SampleScores]:
            with phases.of("sampling"):
                rollout = self.sampler.rollout(part, stage.network, step=batch.step)
            with phases.of("grading"):
                scores = self.scoring.scores(stage, rollout, part)
            self.solved.note((part, rollout, scores), stage.device)
            phases.tokens += int(rollout.length.sum())
            return rollout, scores

        asked = self.solved.without(prompts)
        self._say_where_all_are_solved(stage, len(asked), batch.step)
        found, facts = sampled(
            asked,
            draw,
            prompts_per_step=self._setup.timeline.at(batch.step).rows,
            varying_prompts=self.drawn.varying_prompts,
            device=stage.device,
        )
        return found, {**facts, **phases.told(), **self.scoring.told()}

    def _say_where_all_are_solved(self, stage: Stage, asked: int, step: int) -> None:
        """Once in a process. asked: prompts of this rank. Every rank must call."""
        if not self.drawn.drop_solved or self._said:
            return
        self._said = not int(sum_over_ranks(torch.tensor([asked], device=stage.device)))
        if self._said:
            stage.meter.say(
                f"step {step + 1} has no prompt that was not solved before (stage.drop_solved), so it draws and trains "
                "nothing. If that goes on the data is solved: take other data, or let the run end"
            )

    def experience(self, stage: Stage, sampled: Sampled, policy: PolicyKeys, step: int) -> Experience:
        """The samples of step `step` with their advantages, each compared with the others of its prompt; they are kept
        where that is due. Every rank must call."""
        prompts, rollout, scores = sampled
        advantage = compared(scores, kind=policy.advantage, device=stage.device)
        found = Experience.of(prompts, rollout, advantage, mask_unfinished=policy.mask_unfinished)
        self.keep(stage, found, scores, step)
        return found

    def keep(self, stage: Stage, experience: Experience, scores: SampleScores, step: int) -> None:
        """Write the samples of step `step`, counted from 0, to a file, where that is due."""
        if due(step + 1, self.drawn.keep_rollouts):
            rank, world = stage.global_rank, stage.trainer.world_size
            keep(experience, scores, self._setup, step=step + 1, rank=rank, world=world)

    def held_out_sums(self, stage: Stage, prompts: PromptBatch) -> Tensor:
        """(2 + `measures`,) float64: minus the summed reward of greedy answers, their number, and what is measured of
        them and of samples, whose draws are the same each time. Every rank must call."""
        greedy = self.sampler.greedy(prompts, stage.network)
        sums = told.held_out_sums(greedy, self.scoring.scores(stage, greedy, prompts))
        samples = self._setup.validation_samples
        if samples:
            drawn = self.sampler.apart(prompts, stage.network, step=0, samples=samples, purpose=HELD_OUT_DRAWS)
            scores = self.scoring.scores(stage, *each_alone(drawn, prompts))
            sums = torch.cat([sums, told.sampled_sums(drawn, scores, samples)])
        self.scoring.told()  # what it tells is of no step
        return sums.to(stage.device)


def each_alone(rollout: Rollout, prompts: PromptBatch) -> tuple[Rollout, PromptBatch]:
    """Every sample as the only one of a prompt of its own: what marks by comparison then takes the known answer, as of
    greedy ones. Among themselves samples win half of their pairs, whatever they are worth."""
    number = -1 - torch.arange(len(rollout), device="cpu")
    return replace(rollout, prompt_id=number), replace(prompts.at(prompt_of(rollout, prompts)), number=number)


class Phases:
    """A clock for the phases of one step. tokens: that this rank has sampled."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {"sampling": 0.0, "grading": 0.0}
        self.tokens = 0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count what is done inside to a phase."""
        began = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - began

    def told(self) -> dict[str, Tensor]:
        """(2,) sums and counts."""
        found = {f"perf/{name}_s": mean_parts.of_numbers(seconds) for name, seconds in self._seconds.items()}
        return found | {"rollout/tokens_per_second": mean_parts.of_numbers(self.tokens, self._seconds["sampling"])}
