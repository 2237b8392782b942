"""How long a run is: the first of `stage.max_steps`, `stage.max_tokens` and `stage.max_epochs`, in optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lifecycle.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The part of `stage` that says how long a run is and what a step is made of.

    view: what the stage eats. global_batch_tokens: positions of a step over all ranks. sequence_length: positions of a
    row. Raises UserError where they do not fit together.
    """

    view: str
    max_steps: int | None
    max_tokens: int | None
    max_epochs: float | None
    global_batch_tokens: int
    sequence_length: int

    def __post_init__(self) -> None:
        if self.sequence_length < 2:
            raise UserError(f"stage.sequence_length is {self.sequence_length}; a row has 2 positions or more")
        if self.global_batch_tokens < self.sequence_length or self.global_batch_tokens % self.sequence_length:
            near = max(1, round(self.global_batch_tokens / self.sequence_length)) * self.sequence_length
            raise UserError(
                f"stage.global_batch_tokens is {self.global_batch_tokens}; it must be a multiple of "
                f"stage.sequence_length ({self.sequence_length}): try {near}"
            )
        given = {key: getattr(self, key) for key in ("max_steps", "max_tokens", "max_epochs")}
        if all(value is None for value in given.values()):
            raise UserError("the run has no end: give one of stage.max_steps, stage.max_tokens, stage.max_epochs")
        for key, value in given.items():
            if value is not None and not value > 0:
                raise UserError(f"stage.{key} is {value}; wanted a positive number, or null for no such limit")

    def total_steps(self, epoch_positions: Callable[[], int], share: float) -> int:
        """The step at which the run ends.

        `epoch_positions` counts the trained positions of one pass over `data.epoch_source`, which has `share` of the
        tokens; it is called only if passes are a limit. A limit in tokens is never passed; a pass is completed.
        """
        steps: list[int] = []
        if self.max_steps is not None:
            steps.append(self.max_steps)
        if self.max_tokens is not None:
            steps.append(self._steps_of_tokens(self.max_tokens))
        if self.max_epochs is not None:
            steps.append(math.ceil(self.max_epochs * epoch_positions() / share / self.global_batch_tokens))
        return min(steps)

    def _steps_of_tokens(self, tokens: int) -> int:
        steps = tokens // self.global_batch_tokens
        if steps < 1:
            raise UserError(
                f"stage.max_tokens is {tokens}, less than one step "
                f"(stage.global_batch_tokens={self.global_batch_tokens}): raise it, or lower the other"
            )
        return steps
