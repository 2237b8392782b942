"""Learning to reason from traces: supervised fine-tuning on thoughts and answers that a teacher has written.

    loss = sum over trained tokens of -w log p(label) / sum of w         w: `tag_weight`, 1 (thoughts), `answer_weight`

Weights count inside the mask alone, and the loss is divided by their sum over the whole step. The tags are one token
each (`stage.new_tokens`). Held-out loss is -log p, every token alike.
"""

from __future__ import annotations

from torch import Tensor

from lifecycle.batch import StepBatch, TokenBatch
from lifecycle.bounds import Keys, Positive
from lifecycle.errors import UserError
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.distillation.thoughts import TraceWeights
from lifecycle.stages.run.inheritance import OptimizerState, PeakRate, ReplayedData, Vocabulary
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.next_token import held_out_loss, next_token_loss
from lifecycle.stages.step.optimization import OptimizationKeys


class DistillReason(Stage):
    """Weighted cross-entropy of reasoning traces in packed conversations, from a parent's weights.

    tags: the names before and behind the thoughts.
    """

    views = frozenset({"chat"})
    fp8 = True
    starts_from_parent = True
    takes_over = (PeakRate, OptimizerState, Vocabulary, ReplayedData)
    guard_actions = Stage.guard_actions | {"replay"}

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: Keys[OptimizationKeys],
        tags: list[str],
        tag_weight: Positive,
        answer_weight: Positive,
        setup: Setup,
    ) -> None:
        super().__init__(model=model, optimization=optimization, setup=setup)
        opening, closing = _ids(tags, setup)
        self.weights = TraceWeights(opening=opening, closing=closing, tag=tag_weight, answer=answer_weight)

    def training_step(self, batch: StepBatch[TokenBatch], batch_idx: int) -> None:
        """One optimizer step on this rank's share of the global batch."""
        weighed = [self.weights.of(micro) for micro in batch.micro]
        self.take_step(StepBatch(step=batch.step, micro=weighed, cursor=batch.cursor), self._loss_sum)

    def _loss_sum(self, batch: TokenBatch, documents: DocumentMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token_loss(self.network, batch, documents, compiled=self.setup_facts.compile)

    def validation_step(self, batch: tuple[TokenBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2,) float64: summed negative log-likelihood and number of trained tokens."""
        return held_out_loss(self.network, *batch)


def _ids(tags: list[str], setup: Setup) -> tuple[int, int]:
    """The tokens of the two tags. Raises UserError for other than two, and for one that is not one token."""
    if len(tags) != 2 or tags[0] == tags[1]:
        raise UserError(f"stage.tags is {tags}; wanted two names, such as [<think>,</think>]")
    found = [setup.token_id(name) for name in tags]
    if found[0] is None or found[1] is None:
        beside = " and adapter=none, since an adapter adds no rows to the embedding" if setup.adapter else ""
        raise UserError(
            f"stage.tags: the tokenizer has no token for {tags[found.index(None)]}: type "
            f"'stage.new_tokens=[{','.join(tags)}]', which makes each one token{beside}"
        )
    return found[0], found[1]
