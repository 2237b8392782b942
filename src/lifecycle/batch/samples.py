"""Graded samples in packed rows: the micro-batch that reinforcement learning updates a policy on.

Each sample is a completion behind its prompt; those of one prompt that share a row share its computation
(`TokenBatch.shared`). What a token or a sample is worth was settled over the whole step before it was split, so the sum
of a loss over any split is the same. Shapes: B rows, T positions, N trained tokens, Q samples.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lifecycle.batch.rollout import Kept
from lifecycle.batch.sequences import Places
from lifecycle.batch.steps import TokenBatch

BY_TOKEN = ("advantage", "weight", "sampler_logp", "old_logp", "reference_logp", "old_value", "returns", "experts")
"""Fields with an entry for each trained token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBatch:
    """Rows of samples, and what is known of their trained tokens, which stand in the order of `at.places`.

    advantage: (N,) fp32. weight: (N,) fp32, what each token's objective is multiplied by, and divisor: (Q,) fp64, what
    each sample adds to what the sum of all is divided by (`losses.policy.normalisers`). sampler_logp: (N,) fp32, with
    which the sampler drew the token; old_logp: the policy's before the first update of the step, None where that is the
    one to come; reference_logp: of a frozen reference, None where there is none, or it is still to be asked. old_value:
    (N,) fp32 of a critic before the first update, returns: what its values are trained to; None without a critic. kept:
    the tokens that each was drawn from; None: the whole vocabulary each time. experts: (N, layers, A) int16, those that
    the sampler's pass visited at the position before each token; None: not known.
    """

    tokens: TokenBatch
    at: Places
    advantage: Tensor
    weight: Tensor
    divisor: Tensor
    sampler_logp: Tensor
    old_logp: Tensor | None = None
    reference_logp: Tensor | None = None
    old_value: Tensor | None = None
    returns: Tensor | None = None
    kept: Kept | None = None
    experts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.divisor)

    @property
    def packed(self) -> TokenBatch:
        """The rows."""
        return self.tokens

    @property
    def labels(self) -> Tensor:
        """(N,) int64: the trained tokens."""
        return self.tokens.labels.flatten()[self.at.places]

    def weight_by_source(self, sources: int) -> Tensor:
        """(S,) float64: the divisors."""
        found = self.tokens.source_ids.flatten()[self.at.ends]
        return torch.bincount(found, self.divisor.double(), minlength=sources).double()

    def tokens_by_source(self, sources: int) -> Tensor:
        """(S,) float64: trained tokens."""
        return self.tokens.tokens_by_source(sources)

    def to(self, device: torch.device, non_blocking: bool = False) -> SampleBatch:
        """The same on `device`."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Kept):
                moved[f.name] = value.to(device)
            elif value is not None:
                moved[f.name] = value.to(device, non_blocking=non_blocking)
        return SampleBatch(**moved)

    def rows(self, start: int, stop: int) -> SampleBatch:
        """Rows [start, stop) with their samples."""
        length = self.tokens.labels.shape[1]
        mine_N = (self.at.places >= start * length) & (self.at.places < stop * length)
        mine_Q = (self.at.ends >= start * length) & (self.at.ends < stop * length)
        tokens = self.tokens.rows(start, stop)
        parts: dict[str, Any] = {}
        for name in BY_TOKEN:
            value = getattr(self, name)
            parts[name] = None if value is None else value[mine_N]
        kept = None if self.kept is None else self.kept.take(mine_N.nonzero()[:, 0])
        return replace(self, tokens=tokens, at=Places.of(tokens), divisor=self.divisor[mine_Q], kept=kept, **parts)
