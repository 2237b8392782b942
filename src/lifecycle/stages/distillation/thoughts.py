"""Weights of the tokens of a reasoning trace: its tags, its thoughts, and the answer behind them.

    <think> thoughts </think> answer

A turn whose opening tag stands in the prompt, as some templates write it, begins within its thoughts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lifecycle.batch import IGNORED, TokenBatch


@dataclass(frozen=True, kw_only=True)
class TraceWeights:
    """opening, closing: ids of the tags. tag, answer: weights of the tags and of the answer; a thought has weight 1."""

    opening: int
    closing: int
    tag: float
    answer: float

    def of(self, batch: TokenBatch) -> TokenBatch:
        """The batch with these weights, times those that its labels have; what is not trained stays so."""
        weights = (
            torch.ones(batch.labels.shape, dtype=torch.float32, device=batch.labels.device)
            if batch.weights is None
            else batch.weights.clone()
        )
        for row, labels in enumerate(batch.labels):
            for turn in _turns(labels, batch.document_ids[row]):
                weights[row, turn] *= self._of_turn(labels[turn])
        return TokenBatch.of({**batch.tensors(), "weights": weights}, single=batch.single)

    def _of_turn(self, labels: Tensor) -> Tensor:
        kinds = (labels == self.opening).long() - (labels == self.closing).long()
        tags = kinds != 0
        begun = int(bool(tags.any()) and int(kinds[tags][0]) < 0)
        thought = begun + kinds.cumsum(0) > 0
        weights = torch.where(thought, 1.0, self.answer)
        return weights.masked_fill_(tags, self.tag)


def _turns(labels: Tensor, documents: Tensor) -> list[slice]:
    """Where trained tokens follow on one another within a document."""
    trained = labels != IGNORED
    joined = trained[1:] & trained[:-1] & (documents[1:] == documents[:-1])
    first = trained & ~torch.cat([trained.new_zeros(1), joined])
    last = trained & ~torch.cat([joined, trained.new_zeros(1)])
    begins, ends = first.nonzero()[:, 0].tolist(), last.nonzero()[:, 0].tolist()
    return [slice(begin, end + 1) for begin, end in zip(begins, ends, strict=True)]
