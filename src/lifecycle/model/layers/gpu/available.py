"""Whether our own kernels run here. Nothing in this file imports Triton, which takes its time and may be absent."""

from __future__ import annotations

import importlib.util

import torch

AMPERE = 8
"""First generation of NVIDIA GPUs with bf16 units and asynchronous copies."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of what the kernels take: activations, weights, caches."""

_found: dict[torch.device, bool] = {}


def is_there(device: torch.device) -> bool:
    """Whether Triton is installed, and the device an NVIDIA GPU that it compiles these kernels for. Compiled code reads
    what was found before."""
    if device not in _found:
        triton = torch.version.cuda is not None and importlib.util.find_spec("triton") is not None
        _found[device] = device.type == "cuda" and triton and torch.cuda.get_device_capability(device)[0] >= AMPERE
    return _found[device]
