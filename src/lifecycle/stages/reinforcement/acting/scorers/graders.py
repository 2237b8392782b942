"""Graders as a scorer: plain functions of a text, in a pool of processes (`rewards.graded`)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lifecycle.rewards.graded import GradingKeys, Rewards
from lifecycle.rewards.graders import READERS, STATED
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
        found = self._rewards.graded(asked.rollout.text, [asked.records[i] for i in asked.index], asked.sources)
        marks = {name: found.marks_SR[:, r] for r, name in enumerate(self.names)}
        return SampleMarks(marks=marks, failed=found.failed, timed_out=found.timed_out, said=found.said)

    def stated(self, asked: SamplesToMark) -> dict[str, Tensor]:
        """By grader that can tell, (N,) whether it finds an answer to mark, right or wrong."""
        texts, records = asked.rollout.text, [asked.records[i] for i in asked.index]
        found = self._rewards.stated(texts, records, asked.sources).marks_SR
        return {name: found[:, r] for r, name in enumerate(self.names) if f"{name}{STATED}" in READERS}

    def told(self) -> dict[str, Tensor]:
        """Nothing beside its marks."""
        return {}

    def close(self) -> None:
        """End the processes."""
        self._rewards.close()
