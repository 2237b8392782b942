"""Layers with one input as one product, where a compiler sees it on a GPU: queries, keys and values; gate and up.

One product of 9,216 outputs runs nearer to the limit of a GPU than two of 4,608, and what flows back into the input is
summed inside one product. The joined weight is written by the cast that autocast asks for anyway. Elsewhere (eagerly,
on a CPU) the layers are called one by one: there the copy costs more than it brings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def products(x: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """(..., N_i) of each layer, for x of shape (..., D)."""
    plain = [layer for layer in layers if type(layer) is nn.Linear]  # not one with an adapter or in four bits
    if torch.compiler.is_compiling() and x.device.type == "cuda" and len(plain) == len(layers):
        return as_one(x, plain)
    return [layer(x) for layer in layers]


def as_one(x: Tensor, layers: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """The same by one product, in autocast's dtype where that is on; all layers have a bias, or none."""
    device_type = x.device.type
    on = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if on else layers[0].weight.dtype
    weight = torch.cat([layer.weight.to(dtype) for layer in layers])
    biases = [layer.bias.to(dtype) for layer in layers if layer.bias is not None]
    out = F.linear(x, weight, torch.cat(biases) if biases else None)
    return out.split([layer.weight.shape[0] for layer in layers], dim=-1)
