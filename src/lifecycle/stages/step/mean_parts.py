"""Metrics as the two parts of a mean: (2,) float64, a sum and what it is divided by.

Parts are added over micro-batches, updates and ranks, and divided when they are logged.
"""

from __future__ import annotations

import torch
from torch import Tensor


def of_values(values_N: Tensor) -> Tensor:
    """Of the mean over all values, on their device; a constant to the gradient."""
    total = values_N.detach().double().sum()
    return torch.stack([total, torch.full_like(total, len(values_N))])


def of_known(values_N: Tensor) -> Tensor:
    """Of the mean over the values that are there: NaN is missing. values_N: float64."""
    there_N = ~values_N.isnan()
    return torch.stack([values_N.nan_to_num(0.0).sum(), there_N.sum().double()])


def of_numbers(total: float, count: float = 1.0) -> Tensor:
    """Of numbers of this rank, on the CPU. One that all ranks know alike counts 1 on each, and is logged as it is."""
    return torch.tensor([total, count], dtype=torch.float64, device="cpu")
