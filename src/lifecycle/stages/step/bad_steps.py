"""Steps that are not taken: a loss or gradient that is not finite, and a spike of the gradient norm.

    spike:  norm > max_norm_ratio * mean,     mean <- mean + (norm - mean) / min(taken steps, WINDOW)   after a step

Weights and optimizer stay as they were; the data goes on. The mean waits for SETTLED steps: at first norms fall fast.
A step without a gradient, such as one of samples that are all marked alike, is none of them: next to a mean of such
norms every other would be a spike.
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
        self.skipped = 0
        self.taken: Tensor | int = 0  # steps with a gradient; both on the device, which need not be waited for
        self.mean: Tensor | float = 0.0

    def bad(self, norm: Tensor, loss: Tensor) -> Tensor:
        """() bool: whether the step with this gradient norm (before clipping) and loss is to be skipped."""
        bad = ~torch.isfinite(norm) | ~torch.isfinite(loss)
        if self.max_norm_ratio is not None:
            bad = bad | ((norm > self.max_norm_ratio * self.mean) & (self.taken >= SETTLED))
        return bad

    def take(self, norm: Tensor) -> None:
        """Count a step that was taken, and move the mean of the norms."""
        moved = norm.detach() > 0
        self.taken = self.taken + moved.long()
        step = (norm.detach().float() - self.mean) / self.taken.clamp(min=1, max=WINDOW)
        self.mean = self.mean + torch.where(moved, step, 0.0)

    def skip(self, batch: StepBatch, norm: Tensor, loss: Tensor, *, say: Callable[[str], None]) -> None:
        """Count a skipped step and report it through `say`. Raises UserError for more than `max_skipped`."""
        self.skipped += 1
        mean = float(self.mean)
        usual = f", {float(norm) / mean:.1f} times the usual" if torch.isfinite(norm) and mean else ""
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
        return {"skipped": self.skipped, "taken": int(self.taken), "mean": float(self.mean)}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what `state` returned; the mean is put on `device`."""
        self.skipped, self.taken = state["skipped"], state["taken"]
        self.mean = torch.tensor(state["mean"], dtype=torch.float32, device=device)
