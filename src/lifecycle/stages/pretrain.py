"""Pre-training: next-token cross-entropy on packed documents, plus an optional z-loss (arXiv 2204.02311, section 5).

loss = sum over trained tokens of [ -log p(label) + z_loss * logsumexp(logits)^2 ] / trained tokens of the step
       (+ the balance loss of experts, if the model has one: `Stage.take_step`)
"""

from __future__ import annotations

from torch import Tensor

from lifecycle.batch import StepBatch, TokenBatch
from lifecycle.bounds import Keys, NotNegative
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.next_token import NEXT_TOKEN, held_out_loss, next_token_loss
from lifecycle.stages.step.optimization import OptimizationKeys


class Pretrain(Stage):
    """Next-token prediction on rows of packed documents."""

    views = NEXT_TOKEN
    fp8 = True

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: Keys[OptimizationKeys],
        z_loss: NotNegative,
        setup: Setup,
    ) -> None:
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
