"""Layers with one input as one product, where a compiler sees it on a GPU: queries, keys and values; gate and up.

One product of 9,216 outputs runs nearer to the limit of a GPU than two of 4,608, and what flows back into the input is
summed inside one product. The joined weight is written by the cast that autocast asks for anyway. What follows takes
the joined result as it is (gpu/fused.py). Elsewhere (eagerly, on a CPU) the copy costs more than it brings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifecycle.model.layers.gpu import available, fp8
from lifecycle.model.precision import product_dtype


def joined(x: Tensor, layers: Sequence[nn.Module]) -> Tensor | None:
    """(..., N) of the outputs of all layers behind one another, for x of shape (..., D); None where they are better
    called one by one."""
    plain = [layer for layer in layers if fp8.is_plain(layer)]
    compiles = torch.compiler.is_compiling() and x.dtype in available.DTYPES
    if compiles and len(plain) == len(layers) and available.is_there(x.device):
        return as_one(x, plain)
    return None


def as_one(x: Tensor, layers: Sequence[nn.Linear]) -> Tensor:
    """The same by one product, in autocast's dtype where that is on; all layers have a bias, or none. In fp8 where all
    layers are (gpu/fp8.py)."""
    dtype = product_dtype(x, layers[0].weight.dtype)
    weight = torch.cat([layer.weight.to(dtype) for layer in layers])
    biases = [layer.bias.to(dtype) for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    if isinstance(layers[0], fp8.Fp8Linear) and fp8.takes(x, layers):
        return fp8.product(x.to(dtype), weight, bias, layers[0].products)
    return F.linear(x, weight, bias)
