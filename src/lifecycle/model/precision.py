"""In which dtype products run, and which weights stay in fp32 in a model of half precision: those that autocast uses in
fp32, too."""

from __future__ import annotations

import torch
from torch import Tensor

IN_FP32 = ("norm.weight", "router.weight", "router.bias", "score.weight")
"""Endings of their names. An expert's turn, and which score is higher, hang on differences that half precision cannot
hold."""


def dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Of the weight `name` in a model whose products run in `dtype`."""
    return torch.float32 if name.endswith(IN_FP32) and dtype.itemsize < 4 else dtype


def product_dtype(x: Tensor, otherwise: torch.dtype) -> torch.dtype:
    """Of products with x: autocast's where that is on for its device."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else otherwise
