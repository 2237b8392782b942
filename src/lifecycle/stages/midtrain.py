"""Mid-training: a parent's model goes on with next-token prediction, on a refined mixture and at a lower rate.

The rate warms up again from a tenth of its peak and decays again, and the parent's own data comes back as a share of
every step: re-warming, re-decaying and replay (arXiv 2403.08763). The optimizer starts afresh, or with the moments that
the parent ended with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lifecycle.batch import StepBatch, TokenBatch
from lifecycle.errors import UserError
from lifecycle.model import Documents, ModelConfig
from lifecycle.optim import AdamW, Muon, Schedule
from lifecycle.stages.base import Stage
from lifecycle.stages.language import held_out_loss, next_token_loss
from lifecycle.stages.setup import Setup
from lifecycle.stages.skipping import Skipping


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What comes back of the data that the parent was trained on; a source named `replay` stands in its place.

    share: of the tokens of every step. ancestors: how many generations back (1: the parent's own mixture), `all`, or
    their weights, the parent first.
    """

    share: float
    ancestors: int | Literal["all"] | list[float]

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"stage.replay.share is {self.share}; it is a share of the tokens, from 0 to below 1")
        if isinstance(self.ancestors, list) and not (self.ancestors and all(w >= 0 for w in self.ancestors)):
            raise UserError(f"stage.replay.ancestors is {self.ancestors}; wanted weights, the parent's first")
        if isinstance(self.ancestors, int) and self.ancestors < 1:
            raise UserError(f"stage.replay.ancestors is {self.ancestors}; 1 is the parent, 2 its parent too, ...")


class Midtrain(Stage):
    """Next-token prediction on rows of packed documents, from a parent's weights.

    peak_ratio, replay, new_tokens, split_digits: what the run has taken over from the parent, or added to it, by them
    is in `optimizer`, `model` and the data already.
    optimizer_state: `parent` starts with `setup.initial_optimizer`.
    """

    starts_from_parent = True
    guard_actions = frozenset({"replay", "rate", "restore"})

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimizer: AdamW | Muon,
        schedule: Schedule,
        max_skipped: int,
        max_norm_ratio: float | None,
        z_loss: float,
        peak_ratio: float,
        replay: Replay,
        optimizer_state: Literal["fresh", "parent"],
        new_tokens: list[str],
        split_digits: bool,
        setup: Setup,
    ) -> None:
        skipping = Skipping(max_skipped=max_skipped, max_norm_ratio=max_norm_ratio)
        super().__init__(model=model, optimizer=optimizer, schedule=schedule, skipping=skipping, setup=setup)
        self.z_loss = z_loss

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """One optimizer step on this rank's share of the global batch."""
        self.take_step(batch, self._loss_sum)

    def _loss_sum(self, batch: TokenBatch, documents: Documents | None) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.model is not None
        return next_token_loss(self.model, batch, documents, z_loss=self.z_loss, compiled=self.setup_facts.compile)

    def validation_step(self, batch: tuple[TokenBatch, Documents | None], batch_idx: int) -> Tensor:
        """(2,) float64: summed negative log-likelihood and number of trained tokens."""
        assert self.model is not None
        return held_out_loss(self.model, *batch)
