"""Which weights a model in half precision keeps in fp32: those that autocast, too, computes with in fp32."""

from __future__ import annotations

import torch

IN_FP32 = ("norm.weight", "router.weight", "router.bias")
"""Endings of their names. An expert's turn hangs on differences that half precision cannot hold."""


def dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Of the weight `name` in a model whose products run in `dtype`."""
    return torch.float32 if name.endswith(IN_FP32) and dtype.itemsize < 4 else dtype
