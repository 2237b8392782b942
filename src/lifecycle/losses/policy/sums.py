"""Sums and means over what belongs together: the tokens of a sample, the samples of a group.

Shapes: N values, S things that they belong to, numbered 0 to S - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sums_of(values_N: Tensor, index_N: Tensor, count: int) -> Tensor:
    """(S,) sum of each, 0 where nothing belongs to it. index_N: int64. count: S."""
    return values_N.new_zeros(count).index_add(0, index_N, values_N)


def means_of(values_N: Tensor, index_N: Tensor, count: int) -> Tensor:
    """(S,) mean of each, 0 where nothing belongs to it."""
    counts_S = sums_of(torch.ones_like(values_N), index_N, count)
    return sums_of(values_N, index_N, count) / counts_S.clamp(min=1)


def how_many(index_N: Tensor) -> int:
    """One more than the largest number, 0 of nothing. Waits for a device: give it what is on the CPU."""
    return int(index_N.max()) + 1 if len(index_N) else 0
