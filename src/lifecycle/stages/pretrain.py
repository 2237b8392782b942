"""Pre-training: next-token cross-entropy on packed documents, plus an optional z-loss (arXiv 2204.02311, section 5).

loss = sum over trained tokens of [ -log p(label) + z_loss * logsumexp(logits)^2 ] / trained tokens of the step
       (+ the balance loss of experts, if the model has one: `Stage.take_step`)
"""

from __future__ import annotations

from torch import Tensor

from lifecycle.batch import StepBatch, TokenBatch
from lifecycle.bounds import FromZero, NotNegative
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.optim import AdamW, Muon, Schedule
from lifecycle.stages.base import Stage
from lifecycle.stages.next_token import NEXT_TOKEN, held_out_loss, next_token_loss
from lifecycle.stages.setup import Setup
from lifecycle.stages.step.bad_steps import NormRatio
from lifecycle.stages.step.optimization import Optimization


class Pretrain(Stage):
    """Next-token prediction on rows of packed documents."""

    views = NEXT_TOKEN

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimizer: AdamW | Muon,
        schedule: Schedule,
        max_skipped: FromZero,
        max_norm_ratio: NormRatio | None,
        z_loss: NotNegative,
        setup: Setup,
    ) -> None:
        optimization = Optimization(
            optimizer=optimizer,
            schedule=schedule,
            max_skipped=max_skipped,
            max_norm_ratio=max_norm_ratio,
            timeline=setup.timeline,
        )
        super().__init__(model=model, optimization=optimization, setup=setup)
        self.z_loss = z_loss

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """One optimizer step on this rank's share of the global batch."""
        self.take_step(batch, self._loss_sum)

    def _loss_sum(self, batch: TokenBatch, documents: DocumentMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token_loss(self.network, batch, documents, z_loss=self.z_loss, compiled=self.setup_facts.compile)

    def validation_step(self, batch: tuple[TokenBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2,) float64: summed negative log-likelihood and number of trained tokens."""
        return held_out_loss(self.network, *batch)
