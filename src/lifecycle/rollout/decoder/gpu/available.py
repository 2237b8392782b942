"""Whether our own kernels run here. Nothing in this file imports Triton, which takes its time and may be absent."""

from __future__ import annotations

import importlib.util

import torch

AMPERE = 8
"""First generation of NVIDIA GPUs with bf16 units and asynchronous copies."""


def is_there(device: torch.device) -> bool:
    """Whether Triton is installed, and the device an NVIDIA GPU that it compiles these kernels for."""
    if device.type != "cuda" or torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device)[0] >= AMPERE
