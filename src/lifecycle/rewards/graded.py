"""graded: the marks of a batch of completions by the rewards of their sources, and what could not be marked.

    marks_SR     S completions x R rewards, 0 to 1; NaN: the reward is none of this source, or its record lacks what the
                 grader needs, or the grader failed
    total_S      sum over R of weight * mark, of the marks that are there; NaN: there is none

A grader that takes too long has read something that was made so: its mark is 0, and it is counted. One that failed says
nothing of the completion: its mark is missing, and it is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from lifecycle.bounds import Count, Positive
from lifecycle.errors import UserError
from lifecycle.rewards.graders import OF_SHAPE, READ_OF_META, READERS, STATED, can_mark, check
from lifecycle.rewards.pool.pool import GradingPool
from lifecycle.rewards.pool.task import FAILED, TIMED_OUT, Task
from lifecycle.rewards.record import Answered
from lifecycle.rewards.sandbox.limits import SandboxLimits


@dataclass(frozen=True, kw_only=True)
class GradingKeys:
    """How completions are marked: the keys of `grading`.

    workers: processes. cpu_s, wall_s, memory_mb, file_mb: of a grader, or of a program that it runs (`SandboxLimits`).
    tags: that `format` wants, in their order. target_words: of `length`. repeat_words: of a group that `repetition`
    counts.
    """

    workers: Count
    cpu_s: Count
    wall_s: Positive
    memory_mb: Count
    file_mb: Count
    tags: list[str]
    target_words: Count
    repeat_words: Count

    def __post_init__(self) -> None:
        if not self.tags:
            raise UserError("grading.tags is empty: name the tags that the reward 'format' wants, as [think, answer]")

    @property
    def limits(self) -> SandboxLimits:
        """Of a worker."""
        return SandboxLimits(cpu_s=self.cpu_s, wall_s=self.wall_s, memory_mb=self.memory_mb, file_mb=self.file_mb)

    @property
    def settings(self) -> dict[str, Any]:
        """What graders read in the meta of a record."""
        return {"tags": self.tags, "target_words": self.target_words, "repeat_words": self.repeat_words}


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Marks of S completions. names: of the R rewards. weights_SR: 0 where a reward is none of the source; of rewards
    that are, also where the mark is missing. lost: (completion, reward), where a grader failed. failed, timed_out: by
    reward, how often. said: by reward, what the first failure said."""

    names: tuple[str, ...]
    marks_SR: Tensor
    weights_SR: Tensor
    failed: Counter[str] = field(default_factory=Counter)
    timed_out: Counter[str] = field(default_factory=Counter)
    said: Mapping[str, str] = field(default_factory=dict)
    lost: frozenset[tuple[int, int]] = frozenset()

    @property
    def total_S(self) -> Tensor:
        """The rewards of each completion in one number."""
        there = ~self.marks_SR.isnan() & (self.weights_SR != 0)
        total = (self.marks_SR.nan_to_num() * self.weights_SR).sum(1)
        return torch.where(there.any(1), total, torch.nan)


class Rewards:
    """Rewards of a run. weights: by grader; by_source: the same of sources that have their own. Processes start when
    they are first needed, and end by `close`."""

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        by_source: Mapping[str, Mapping[str, float]],
        grading: GradingKeys,
    ) -> None:
        check(weights, "the rewards")
        for source, own in by_source.items():
            check(own, f"data.sources.{source}.rewards")
        self._weights, self._by_source = dict(weights), {name: dict(own) for name, own in by_source.items()}
        self._settings = grading.settings
        self.names = tuple(dict.fromkeys(name for own in (weights, *by_source.values()) for name in own))
        self._pool = GradingPool(graders=self.names, workers=grading.workers, limits=grading.limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def of(self, source: str) -> Mapping[str, float]:
        """Weights of the rewards of a source."""
        return self._by_source.get(source, self._weights)

    def graded(self, completions: Sequence[str], records: Sequence[Answered], sources: Sequence[str]) -> Marks:
        """The marks of completions, each with the record and the source of its prompt."""
        return self._answers(completions, records, sources, "")

    def graded_in_turns(
        self, last: Sequence[str], all_said: Sequence[str], records: Sequence[Answered], sources: Sequence[str]
    ) -> Marks:
        """The same of completions in turns, of which graders read the last one, and graders of shape all together."""
        return self._answers(last, records, sources, "", all_said)

    def stated(self, completions: Sequence[str], records: Sequence[Answered], sources: Sequence[str]) -> Marks:
        """The same, where a mark of 1 says that a grader found an answer to mark, right or wrong; missing of graders
        that mark any text."""
        return self._answers(completions, records, sources, STATED)

    def _answers(
        self,
        completions: Sequence[str],
        records: Sequence[Answered],
        sources: Sequence[str],
        asked: str,
        all_said: Sequence[str] | None = None,
    ) -> Marks:
        """asked: behind a grader's name; nothing: its marks."""
        shape = (len(completions), len(self.names))
        marks_SR = torch.full(shape, torch.nan, dtype=torch.float64, device="cpu")
        weights_SR = torch.zeros(shape, dtype=torch.float64, device="cpu")
        places, tasks, lost = list[tuple[int, int]](), list[Task](), set[tuple[int, int]]()
        for s, (completion, record, source) in enumerate(zip(completions, records, sources, strict=True)):
            known = {key: record.meta[key] for key in READ_OF_META if key in record.meta}
            told = Answered(answer=record.answer, prompt=record.prompt, meta={**self._settings, **known})
            for name, weight in self.of(source).items():
                r = self.names.index(name)
                weights_SR[s, r] = weight
                if can_mark(name, record) and (not asked or f"{name}{asked}" in READERS):
                    places.append((s, r))
                    text = all_said[s] if all_said is not None and name in OF_SHAPE else completion
                    tasks.append(Task(grader=f"{name}{asked}", completion=text, record=told))
        failed, timed_out, said = Counter[str](), Counter[str](), dict[str, str]()
        for (s, r), outcome in zip(places, self._pool.map(tasks), strict=True):
            if outcome.state == FAILED:
                lost.add((s, r))
                failed[self.names[r]] += 1
                said.setdefault(self.names[r], outcome.text)
                continue
            timed_out[self.names[r]] += outcome.state == TIMED_OUT
            marks_SR[s, r] = outcome.mark or 0.0
        return Marks(
            names=self.names,
            marks_SR=marks_SR,
            weights_SR=weights_SR,
            failed=failed,
            timed_out=+timed_out,
            said=said,
            lost=frozenset(lost),
        )
