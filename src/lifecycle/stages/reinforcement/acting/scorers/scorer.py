"""What marks samples: graders in their processes (`graders.py`), a reward model (`reward_model.py`), a judge
(`judge.py`).

A scorer has the names of its rewards, and gives a mark for each sample that a reward is asked for. It is called in
every step on every rank, also where that has no sample. What it marks by is in no checkpoint: the same samples get the
same marks, up to rounding, in whatever parts and on whatever ranks they come. A sample that cannot be marked has no
mark (NaN), which is not 0, and is counted as failed.

Shapes: N samples, R rewards of the scorer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.rewards.record import Answered
from lifecycle.stages.base import Stage
from lifecycle.stages.beside.frozen import HeldBeside
from lifecycle.stages.step.watched import Carried


@dataclass(frozen=True, kw_only=True)
class SamplesToMark:
    """Samples to be marked. prompts: those of this rank, which `index` counts; index: (N) of each sample's prompt.
    records: of each prompt, what graders read; what stands beside it in `prompts.meta`: its turns (`batch.TURNS`).
    sources: (N) names. wanted: by reward, (N,) bool, the samples whose source has it."""

    stage: Stage
    rollout: Rollout
    prompts: PromptBatch
    index: Sequence[int]
    records: Sequence[Answered]
    sources: Sequence[str]
    wanted: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.index)

    def of(self, name: str) -> list[int]:
        """The samples that the reward is asked for."""
        return self.wanted[name].nonzero()[:, 0].tolist()


@dataclass(frozen=True, kw_only=True)
class SampleMarks:
    """marks: by reward, (N,) float64 on the CPU, NaN where there is none. lost: by reward, (N,) bool, where it should
    have one, and failed; a reward that cannot fail is not there. failed, timed_out: by reward, how many samples it
    failed on, or took too long for. said: by reward, what the first failure said."""

    marks: Mapping[str, Tensor]
    lost: Mapping[str, Tensor] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    timed_out: Counter[str] = field(default_factory=Counter)
    said: Mapping[str, str] = field(default_factory=dict)


class Scorer(Protocol):
    """names: of its rewards. beside: the network that it asks, which the stage holds; None: it asks none. carried: what
    a checkpoint holds of it, by name."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def beside(self) -> HeldBeside | None: ...
    @property
    def carried(self) -> Mapping[str, Carried]: ...

    def marked(self, asked: SamplesToMark) -> SampleMarks:
        """A mark for each sample and reward. Every rank must call."""
        ...

    def told(self) -> dict[str, Tensor]:
        """(2,) float64 sums and counts of what it tells beside its marks, since it was last asked; the same names on
        every rank."""
        ...

    def close(self) -> None:
        """End its processes, where it has some; the next call starts new ones."""
        ...


def unmarked(samples: int) -> Tensor:
    """(N,) float64: no marks yet."""
    return torch.full((samples,), torch.nan, dtype=torch.float64, device="cpu")
