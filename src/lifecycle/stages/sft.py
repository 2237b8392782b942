"""Supervised fine-tuning: a parent's model learns to answer as the assistant of conversations does.

    loss: nll    sum over trained tokens of -log p(label)           / trained tokens of the step
    loss: dft    sum over trained tokens of -sg(p) log p(label)     / trained tokens of the step      (arXiv 2508.05629)

(times the weights of the labels, where they have such; plus the balance loss of experts, if the model has them.)
Trained is what the assistant writes, with the token that ends its turn, or the whole conversation. Held-out loss is
-log p with either.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lifecycle.batch import StepBatch, TokenBatch
from lifecycle.bounds import Keys
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.run.inheritance import OptimizerState, PeakRate, ReplayedData, Vocabulary
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.next_token import TrainedTokens, held_out_loss, next_token_loss
from lifecycle.stages.step.optimization import OptimizationKeys


class Sft(Stage):
    """Cross-entropy of the assistant's tokens in packed conversations, from a parent's weights.

    loss: nll, or dft, which lets a token count by its own probability.
    """

    views = frozenset({"chat"})
    fp8 = True
    starts_from_parent = True
    takes_over = (PeakRate, OptimizerState, Vocabulary, ReplayedData, TrainedTokens)
    guard_actions = Stage.guard_actions | {"replay"}

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: Keys[OptimizationKeys],
        loss: Literal["nll", "dft"],
        setup: Setup,
    ) -> None:
        super().__init__(model=model, optimization=optimization, setup=setup)
        self.loss = loss

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """One optimizer step on this rank's share of the global batch."""
        self.take_step(batch, self._loss_sum)

    def _loss_sum(self, batch: TokenBatch, documents: DocumentMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        dft, compiled = self.loss == "dft", self.setup_facts.compile
        return next_token_loss(self.network, batch, documents, dft=dft, compiled=compiled)

    def validation_step(self, batch: tuple[TokenBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2,) float64: summed negative log-likelihood and number of trained tokens."""
        return held_out_loss(self.network, *batch)
