"""Mid-training: a parent's model goes on with next-token prediction, on a refined mixture and at a lower rate.

The rate warms up again from a tenth of its peak and decays again, and a share of every step is the parent's own data:
re-warming, re-decaying and replay (arXiv 2403.08763). The optimizer starts with zero moments, or with those of the
parent's last checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lifecycle.batch import StepBatch, TokenBatch
from lifecycle.bounds import Count, Keys, NotNegative, Positive
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.run.inheritance import OptimizerState, PeakRate, ReplayedData, Vocabulary
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.next_token import NEXT_TOKEN, held_out_loss, next_token_loss
from lifecycle.stages.step.optimization import OptimizationKeys
from lifecycle.stages.step.penalty import EwcPenalty


@dataclass(frozen=True, kw_only=True)
class Ewc:
    """Elastic weight consolidation (`losses.ewc`): strength of its penalty; rows of the parent's data that the Fisher
    information is estimated on."""

    strength: Positive
    rows: Count


class Midtrain(Stage):
    """Next-token prediction on rows of packed documents, from a parent's weights.

    ewc: a penalty on moving away from the parent's weights, beside replay or in its place; None for none.
    """

    views = NEXT_TOKEN
    fp8 = True
    starts_from_parent = True
    takes_over = (PeakRate, OptimizerState, Vocabulary, ReplayedData)
    guard_actions = Stage.guard_actions | {"replay"}
    weight_copies: ClassVar[Mapping[str, int]] = {"ewc": 2}  # those of the parent, and the Fisher information

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: Keys[OptimizationKeys],
        z_loss: NotNegative,
        ewc: Ewc | None,
        setup: Setup,
    ) -> None:
        penalty = None
        if ewc is not None:
            penalty = EwcPenalty(strength=ewc.strength, rows=ewc.rows, log_likelihood=self._log_likelihood)
        super().__init__(model=model, optimization=optimization, setup=setup, penalty=penalty)
        self.z_loss = z_loss

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """One optimizer step on this rank's share of the global batch."""
        self.take_step(batch, self._loss_sum)

    def _loss_sum(self, batch: TokenBatch, documents: DocumentMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token_loss(self.network, batch, documents, z_loss=self.z_loss, compiled=self.setup_facts.compile)

    def validation_step(self, batch: tuple[TokenBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2,) float64: summed negative log-likelihood and number of trained tokens."""
        return held_out_loss(self.network, *batch)

    def _log_likelihood(self, row: TokenBatch) -> Tensor:
        """Summed log-probability of the trained tokens of a row, with gradients."""
        with self.trainer.precision_plugin.forward_context():
            loss, _ = next_token_loss(self.network, *self.on_device(row), z_loss=0.0, compiled=False)
        return -loss
