"""Steps that are not taken: a loss or gradient that is not finite, and a spike of the gradient norm.

    spike:  norm > max_norm_ratio * mean,     mean <- mean + (norm - mean) / min(taken steps, WINDOW)   after a step

Weights and optimizer stay as they were; the data goes on. The mean waits for SETTLED steps: at first norms fall fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor

from lifecycle.batch import StepBatch
from lifecycle.bounds import Bounds
from lifecycle.errors import UserError

WINDOW = 200  # taken steps that the running mean is over, about
SETTLED = 100  # taken steps before the mean judges

NormRatio = Annotated[float, Bounds(above=1)]


class Skipping:
    """Decides which steps are skipped and counts them; more than `max_skipped` end the run.

    max_norm_ratio: a gradient norm of so many times the running mean is a spike; None: no such check.
    """

    def __init__(self, *, max_skipped: int, max_norm_ratio: float | None) -> None:
        self.max_skipped, self.max_norm_ratio = max_skipped, max_norm_ratio
        self.skipped = self.taken = 0
        self.mean: Tensor | float = 0.0  # on the device, which need not be waited for

    def bad(self, norm: Tensor, loss: Tensor) -> Tensor:
        """() bool: whether the step with this gradient norm (before clipping) and loss is to be skipped."""
        bad = ~torch.isfinite(norm) | ~torch.isfinite(loss)
        if self.max_norm_ratio is not None and self.taken >= SETTLED:
            bad = bad | (norm > self.max_norm_ratio * self.mean)
        return bad

    def take(self, norm: Tensor) -> None:
        """Count a step that was taken, and move the mean of the norms."""
        self.taken += 1
        self.mean = self.mean + (norm.detach().float() - self.mean) / min(self.taken, WINDOW)

    def skip(self, batch: StepBatch, norm: Tensor, loss: Tensor, *, say: Callable[[str], None]) -> None:
        """Count a skipped step and report it through `say`. Raises UserError for more than `max_skipped`."""
        self.skipped += 1
        usual = f", {float(norm) / float(self.mean):.1f} times the usual" if torch.isfinite(norm) and self.taken else ""
        say(
            f"step {batch.step + 1} skipped: loss {float(loss)}, gradient norm {float(norm)}{usual}; data: rows of "
            f"step {batch.step} of streams {min(batch.cursor.streams)}-{max(batch.cursor.streams)} "
            f"({self.skipped} of at most {self.max_skipped} skipped)"
        )
        if self.skipped > self.max_skipped:
            raise UserError(
                f"{self.skipped} steps gave a loss or gradient that is not finite, or a spike, more than "
                f"stage.max_skipped={self.max_skipped}. The last checkpoint is intact. Look at the data named above "
                "and raise stage.max_skipped, or start anew with a lower stage.optimizer.lr"
            )

    def state(self) -> dict[str, Any]:
        """Counts and mean as plain numbers, for the checkpoint."""
        return {"skipped": self.skipped, "taken": self.taken, "mean": float(self.mean)}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what `state` returned; the mean is put on `device`."""
        self.skipped, self.taken = state["skipped"], state["taken"]
        self.mean = torch.tensor(state["mean"], dtype=torch.float32, device=device)
