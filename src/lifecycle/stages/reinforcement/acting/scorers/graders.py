"""Graders as a scorer: plain functions of a text, in a pool of processes (`rewards.graded`).

Where an environment answers in the middle of a completion, nothing of what it says is marked: graders that look for an
answer read what the policy said last, behind the last of its calls, and those of shape all that the policy said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lifecycle.batch import Rollout
from lifecycle.rewards.graded import GradingKeys, Rewards
from lifecycle.rewards.graders import KNOW_THE_ANSWER, READERS, STATED
from lifecycle.rewards.record import Answered
from lifecycle.stages.reinforcement.acting.scorers.scorer import SampleMarks, SamplesToMark
from lifecycle.stages.step.watched import Carried


class Graders:
    """weights: of the graders among the rewards of the stage; by_source: of sources that have their own."""

    beside = None
    carried: Mapping[str, Carried] = {}

    def __init__(
        self, weights: Mapping[str, float], *, by_source: Mapping[str, Mapping[str, float]], grading: GradingKeys
    ) -> None:
        self._rewards = Rewards(weights, by_source=by_source, grading=grading)
        self.names = self._rewards.names

    def marked(self, asked: SamplesToMark) -> SampleMarks:
        """By the texts of the samples."""
        last, all_said = texts(asked.rollout)
        records = [asked.records[i] for i in asked.index]
        found = self._rewards.graded_in_turns(last, all_said, records, asked.sources)
        marks = {name: found.marks_SR[:, r] for r, name in enumerate(self.names)}
        lost_SR = torch.zeros_like(found.marks_SR, dtype=torch.bool)
        for place in found.lost:
            lost_SR[place] = True
        lost = {name: lost_SR[:, r] for r, name in enumerate(self.names)}
        return SampleMarks(marks=marks, lost=lost, failed=found.failed, timed_out=found.timed_out, said=found.said)

    def stated(self, asked: SamplesToMark) -> dict[str, Tensor]:
        """By grader that can tell, (N,) whether it finds an answer to mark, right or wrong."""
        last, _ = texts(asked.rollout)
        found = self._rewards.stated(last, [asked.records[i] for i in asked.index], asked.sources).marks_SR
        return {name: found[:, r] for r, name in enumerate(self.names) if f"{name}{STATED}" in READERS}

    def right(self, said: Sequence[str], records: Sequence[Answered], sources: Sequence[str]) -> Tensor:
        """(N,) float64 of texts, each with the record and the source of its prompt: 1 where every grader that knows
        the answer gives 1, else 0; NaN where none does."""
        found = self._rewards.graded(said, records, sources)
        knowing_R = torch.tensor([name in KNOW_THE_ANSWER for name in self.names], dtype=torch.bool, device="cpu")
        return right_by(found.marks_SR.masked_fill((found.weights_SR <= 0) | ~knowing_R, torch.nan))

    def told(self) -> dict[str, Tensor]:
        """Nothing beside its marks."""
        return {}

    def close(self) -> None:
        """End the processes."""
        self._rewards.close()


def right_by(marks_NR: Tensor) -> Tensor:
    """(N,) float64: 1 where each mark of a sample is full, else 0; NaN of a sample without any."""
    missing = marks_NR.isnan()
    return ((marks_NR >= 1) | missing).all(1).double().masked_fill(missing.all(1), torch.nan)


def texts(rollout: Rollout) -> tuple[list[str], list[str]]:
    """Of each completion, what the policy said last, and all that it said."""
    if rollout.dialogues is None:
        return rollout.text, rollout.text
    return [one.last_said for one in rollout.dialogues], [one.said for one in rollout.dialogues]
