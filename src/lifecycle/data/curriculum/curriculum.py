"""Easy to hard: which difficulty is read when, as shares of a source's tokens by the progress of the run.

    stages: [{until: 0.3, levels: [1, 2]}, {until: 1.0, levels: [2, 5]}]      a table
    pacing: sqrt, start: 0.1, full_at: 0.7                                    the easiest c(p) of the rows, all alike

    c(p) = c0 + (1 - c0) p      sqrt(c0^2 + (1 - c0^2) p)      c0^(1 - p)     p: progress / full_at, c0: start

Linear and sqrt: competence of arXiv 1903.09848, eq. 6 and 7; exponential: geometric progression of arXiv 1912.08555.
The ends of all stages cut the scale into *difficulty buckets*; each bucket of a source becomes a source of its own
(`buckets.py`), whose weight changes by this table. A row on the edge of two buckets belongs to the easier one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lifecycle.bounds import Part, PartOrAll, PartOrNone
from lifecycle.data.curriculum.scores import By
from lifecycle.errors import UserError

LOWEST, HIGHEST = 1.0, 5.0  # of the scale that scores are mapped onto
PACED_STEPS = 9  # in which a pacing function opens what is not open at the start
WHERE = "data.curriculum"


@dataclass(frozen=True, kw_only=True)
class CurriculumStage:
    """Up to the progress `until`, rows of difficulty from `levels[0]` to `levels[1]`."""

    until: PartOrAll
    levels: tuple[float, float]


class Change(NamedTuple):
    """From `progress` on, the buckets from `first` to `stop` (exclusive) are read."""

    progress: float
    first: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """How rows are ordered by difficulty, and when they are read. Every key is explained in conf/curriculum.

    Raises UserError for a table or a pacing that is not valid.
    """

    by: By
    sources: list[str] | None
    scale: Literal["quantile", "none"]
    stages: list[CurriculumStage] | None
    pacing: Literal["linear", "sqrt", "exponential"] | None
    start: Part
    full_at: PartOrAll
    older_share: PartOrNone

    def __post_init__(self) -> None:
        if (self.stages is None) == (self.pacing is None):
            came = "neither" if self.stages is None else "both"
            raise UserError(
                f"{WHERE}: {came} of stages and pacing given; give one, and type the other as null "
                f"({WHERE}.pacing=sqrt {WHERE}.stages=null)"
            )
        self._check_pacing() if self.pacing else self._check_stages(self.stages or [])

    def _check_pacing(self) -> None:
        if self.scale != "quantile":
            raise UserError(f"{WHERE}.pacing opens a share of the rows, which needs ranks: type {WHERE}.scale=quantile")
        if self.older_share:
            raise UserError(
                f"{WHERE}.older_share is {self.older_share}, but with pacing all that is open is read alike: type "
                f"{WHERE}.older_share=0"
            )

    def _check_stages(self, stages: Sequence[CurriculumStage]) -> None:
        ends = [0.0, *(stage.until for stage in stages)]
        if ends != sorted(set(ends)) or ends[-1] != 1:
            raise UserError(f"{WHERE}.stages end at {ends[1:]}; `until` ascends from above 0 to 1.0, the run's end")
        for number, stage in enumerate(stages):
            low, high = stage.levels
            if not low < high:
                raise UserError(f"{WHERE}.stages[{number}].levels is [{low:g}, {high:g}]; the easier end comes first")
            if self.scale == "quantile" and not LOWEST <= low < high <= HIGHEST:
                raise UserError(
                    f"{WHERE}.stages[{number}].levels is [{low:g}, {high:g}]; with scale=quantile levels lie between "
                    f"{LOWEST:g} and {HIGHEST:g}"
                )
        for low, high in zip(self.bounds, self.bounds[1:], strict=False):
            if not any(stage.levels[0] <= low and high <= stage.levels[1] for stage in stages):
                raise UserError(
                    f"no stage of {WHERE} reads the levels {low:g} to {high:g}, so their rows would be lost: put them "
                    "into one, or leave them out by a filter of the source"
                )

    @property
    def bounds(self) -> list[float]:
        """The edges of the buckets, ascending; scores outside them belong to the first and the last bucket."""
        if self.stages is not None:
            return sorted({end for stage in self.stages for end in stage.levels})
        shares = [0.0, *(self.start + (1 - self.start) * step / PACED_STEPS for step in range(PACED_STEPS + 1))]
        return [LOWEST + (HIGHEST - LOWEST) * share for share in shares]

    @property
    def buckets(self) -> list[str]:
        """The names of the buckets: 1-2, 2-3.5."""
        return [f"{low:.3g}-{high:.3g}" for low, high in zip(self.bounds, self.bounds[1:], strict=False)]

    @property
    def changes(self) -> list[Change]:
        """The progress at which other buckets begin to be read, ascending."""
        if self.stages is None:
            return [Change(self._reached(step / PACED_STEPS), 0, step + 1) for step in range(PACED_STEPS + 1)]
        begins = [0.0, *(stage.until for stage in self.stages)]
        place = {bound: index for index, bound in enumerate(self.bounds)}
        return [Change(begin, *(place[end] for end in s.levels)) for begin, s in zip(begins, self.stages, strict=False)]

    def _reached(self, opened: float) -> float:
        """The progress at which the fraction `opened` (0 to 1) of the rows that are not read at the start is read: c(p)
        solved for p."""
        competence = self.start + (1 - self.start) * opened
        if self.pacing == "linear":
            share = opened
        elif self.pacing == "sqrt":
            share = (competence**2 - self.start**2) / (1 - self.start**2)
        else:
            share = 1 - math.log(competence) / math.log(self.start)
        return self.full_at * share

    def bucket_of(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """(N,) the number of the bucket of each score (N,) on the scale; NaN is in the last."""
        return np.searchsorted(self.bounds[1:-1], scores, side="left")

    def schedule(self, sizes: Sequence[float], name: str) -> dict[float, list[float]]:
        """Shares of the tokens of source `name` by bucket, which add up to 1, from each progress on.

        `sizes` of the buckets: those that are read together are read in these proportions, so each of their rows comes
        equally often. Raises UserError for a stage in which the source has nothing to read.
        """
        return {change.progress: self._shares(change, sizes, name) for change in self.changes}

    def _shares(self, change: Change, sizes: Sequence[float], name: str) -> list[float]:
        first, stop = change.first, change.stop
        while self.pacing and not any(sizes[first:stop]):  # many rows of one score: the easiest there are
            stop += 1
        now, older = sum(sizes[first:stop]), sum(sizes[:first])
        if not now:
            raise UserError(
                f"{WHERE} reads the levels {self.bounds[first]:g} to {self.bounds[stop]:g} from "
                f"{change.progress:.0%} of the run on, and data.sources.{name} has no row there: widen the stage, type "
                f"{WHERE}.scale=quantile, or leave the source out of {WHERE}.sources"
            )
        kept = self.older_share if older else 0.0
        return [
            kept * size / older if n < first and older else (1 - kept) * size / now if first <= n < stop else 0.0
            for n, size in enumerate(sizes)
        ]


def quantile_scale(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores mapped onto 1 to 5 by rank: 1 + 4 (r - 1/2) / n, r the mean rank of equal ones; NaN stays NaN."""
    scored = np.flatnonzero(~np.isnan(scores))
    out = np.full(len(scores), np.nan)
    _, which, counts = np.unique(scores[scored], return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    out[scored] = LOWEST + (HIGHEST - LOWEST) * middle[which] / max(len(scored), 1)
    return out
