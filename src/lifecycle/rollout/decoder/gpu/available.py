"""Whether our own kernels run here. Nothing in this file imports Triton, which takes its time and may be absent."""

from __future__ import annotations

import importlib.util

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of weights and of caches, which the kernels take."""

AMPERE = 8
"""First generation of NVIDIA GPUs with bf16 units and asynchronous copies."""


def fits(weights: torch.dtype, cache: torch.dtype | None, device: torch.device) -> bool:
    """Whether the kernels take a dense model of such weights with such a cache (None: in a dtype of ours)."""
    return weights in DTYPES and cache in (None, *DTYPES) and is_there(device)


def is_there(device: torch.device) -> bool:
    """Whether Triton is installed, and the device an NVIDIA GPU that it compiles these kernels for."""
    if device.type != "cuda" or torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device)[0] >= AMPERE
