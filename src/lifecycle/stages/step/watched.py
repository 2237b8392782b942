"""State that a stage holds for callbacks: the decisions of the forgetting guard, and the best validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Measured = tuple[int, dict[str, float]]
"""Steps taken before a validation, and its metrics."""


class Carried(Protocol):
    """What moves in a run and cannot be derived, so that every checkpoint holds it."""

    def state(self) -> Any:
        """Tensors and plain containers."""

    def restore(self, state: Any) -> None:
        """Go on from `state`."""


OLDER = {"penalty": "springs"}
"""Names in checkpoints of older versions."""


def carried_in(stage: Mapping[str, Any], name: str) -> Any:
    """The state of one of `Stage`'s carried objects in what a checkpoint holds of a stage; None where it has none."""
    return stage.get(OLDER.get(name, name), stage.get(name))


@dataclass(kw_only=True)
class GuardState:
    """Decisions of a forgetting guard, and the validations that it has not judged yet.

    lr_scale: factor of every learning rate. restore_step: the guard has ended the run with the checkpoint of this step;
    0: there was no good one; None: it has not ended it. safe_at: the last step that it may go back to. measured:
    validations since it last judged.
    """

    lr_scale: float = 1.0
    restore_step: int | None = None
    safe_at: int | None = None
    measured: list[Measured] = field(default_factory=list)

    def take_measurements(self) -> list[Measured]:
        """The validations since the last call, oldest first."""
        taken, self.measured = self.measured, []
        return taken

    def state(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return {"rate_scale": self.lr_scale, "restore": self.restore_step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; checkpoints of older versions may lack `restore`."""
        self.lr_scale, self.restore_step = state["rate_scale"], state.get("restore")


@dataclass(kw_only=True)
class Best:
    """The least validation loss of a run, and its step. improved_at: that step, if it was taken in this process."""

    loss: float = math.inf
    step: int | None = None
    improved_at: int | None = None

    def note(self, step: int, loss: float) -> None:
        """Compare with the validation after `step` steps; that before the first step (0) is the parent's and not
        counted."""
        if step and loss < self.loss:
            self.loss, self.step, self.improved_at = loss, step, step

    def state(self) -> list[float] | None:
        """Loss and step; None before the first."""
        return None if self.step is None else [self.loss, self.step]

    def restore(self, state: list[float] | None) -> None:
        """Go on from `state`."""
        if state:
            self.loss, self.step = state[0], int(state[1])
