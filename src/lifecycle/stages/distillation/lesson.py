"""A micro-batch of distillation: packed rows, and what is known of their trained tokens before the step computes.

Shapes: B rows, T positions, N trained tokens, K tokens that were kept of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lifecycle.batch import TokenBatch
from lifecycle.losses.distillation import TopK


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """Rows to learn from.

    places: (N,) int64 of the trained tokens in the flattened rows, made on the CPU, so that a device is not waited for.
    said: what the teacher said of them; None: it is asked. sampler_logp: (N,) fp32, the log-probabilities with which
    the student drew the tokens; None for rows of the data.
    """

    tokens: TokenBatch
    places: Tensor
    said: TopK | None = None
    sampler_logp: Tensor | None = None

    @classmethod
    def of(cls, tokens: TokenBatch) -> Lesson:
        """Of rows of the data."""
        return cls(tokens=tokens, places=tokens.trained.flatten().nonzero()[:, 0])

    @property
    def packed(self) -> TokenBatch:
        """The rows."""
        return self.tokens

    @property
    def labels_N(self) -> Tensor:
        """The trained tokens."""
        return self.tokens.labels.flatten()[self.places]

    @property
    def weights_N(self) -> Tensor | None:
        """Their weights; None: all 1."""
        return None if self.tokens.weights is None else self.tokens.weights.flatten()[self.places]

    def weight_by_source(self, sources: int) -> Tensor:
        """(S,) float64: trained tokens by their weights."""
        return self.tokens.weight_by_source(sources)

    def tokens_by_source(self, sources: int) -> Tensor:
        """(S,) float64: trained tokens."""
        return self.tokens.tokens_by_source(sources)

    def to(self, device: torch.device, non_blocking: bool = False) -> Lesson:
        """The same on `device`."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        said = None if self.said is None else TopK(*(part.to(device, non_blocking=non_blocking) for part in self.said))
        return Lesson(
            tokens=self.tokens.to(device, non_blocking),
            places=self.places.to(device, non_blocking=non_blocking),
            said=said,
            sampler_logp=moved(self.sampler_logp),
        )

    def rows(self, start: int, stop: int) -> Lesson:
        """Rows [start, stop), with what is known of their tokens."""
        length = self.tokens.labels.shape[1]
        mine = (self.places >= start * length) & (self.places < stop * length)
        return Lesson(
            tokens=self.tokens.rows(start, stop),
            places=self.places[mine] - start * length,
            said=None if self.said is None else TopK(*(part[mine] for part in self.said)),
            sampler_logp=None if self.sampler_logp is None else self.sampler_logp[mine],
        )
