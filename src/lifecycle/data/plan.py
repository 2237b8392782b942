"""What a step is made of: row length, rows and source weights as functions of the step.

A plan is a table of phases. A change binds at the step that the table names, whatever was prefetched: a stream cuts its
packing window there (see `stream.py`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from lifecycle.errors import UserError

MAX_DEFAULT_STREAMS = 16


@dataclass(frozen=True, kw_only=True)
class Phase:
    """From `step` on: rows of `row_length` positions, `rows` of them a step (over all ranks), sources by `weights`."""

    step: int
    row_length: int
    rows: int
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.row_length < 2 or self.rows < 1:
            raise UserError(
                f"a step of {self.rows} rows of {self.row_length} tokens is empty: stage.global_batch_tokens must be "
                "at least stage.sequence_length, and stage.sequence_length at least 2"
            )


@dataclass(frozen=True)
class BatchPlan:
    """Phases in order of their steps; the first begins at step 0."""

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        steps = [phase.step for phase in self.phases]
        if not steps or steps[0] != 0 or steps != sorted(set(steps)):
            raise UserError(f"a batch plan's phases must start at step 0 and ascend; got steps {steps}")

    def at(self, step: int) -> Phase:
        """The phase that step `step` belongs to."""
        return self.phases[bisect_right([phase.step for phase in self.phases], step) - 1]

    def next_change(self, step: int) -> int | None:
        """The first step after `step` at which another phase begins, or None."""
        later = [phase.step for phase in self.phases if phase.step > step]
        return later[0] if later else None

    def streams(self, wanted: int | None, world_size: int) -> int:
        """The number of logical streams: it divides the rows of every phase, and ranks share it out evenly.

        It must not depend on the number of ranks unless it has to (the token sequence is a function of it), so the
        default is the largest divisor of the rows up to 16.
        """
        rows = math.gcd(*(phase.rows for phase in self.phases))
        count = wanted or max(d for d in range(1, MAX_DEFAULT_STREAMS + 1) if rows % d == 0)
        if rows % count:
            raise UserError(
                f"data.streams is {count}; it must divide the rows of a step ({rows}): try {_near(rows, count)}"
            )
        if count % world_size:
            raise UserError(
                f"{count} logical streams (data.streams; rows of a step: {rows}) cannot be shared out evenly among "
                f"{world_size} ranks: set stage.global_batch_tokens so that the rows are a multiple of {world_size}, "
                "or data.streams to a multiple of the ranks"
            )
        return count


def _near(rows: int, count: int) -> int:
    return max(d for d in range(1, count + 1) if rows % d == 0)
