"""Frozen linear layers in 4 bits, by bitsandbytes: nf4 with quantised scales (QLoRA, arXiv 2305.14314, section 3).

The weights become small when the module moves to its device; products are made in the type of what comes in. A layer is
in an eighth of the memory, and gives gradients to its input but has none itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def quantise(model: nn.Module, names: Iterable[str]) -> None:
    """Put 4-bit layers in the place of the linear layers of these names."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in names:
        above, _, own = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        how: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
        small = Linear4bit(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta", **how)
        small.weight = Params4bit(layer.weight.data, requires_grad=False, **how)
        small.bias = layer.bias
        setattr(model.get_submodule(above), own, small)


@torch.no_grad()
def whole_weight(layer: nn.Module) -> Tensor:
    """The numbers that a 4-bit layer stands for, fp32, on its device; (out, in)."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Any = layer.weight
    if weight.quant_state is None:  # it has not moved to its device yet
        return weight.data.float()
    return dequantize_4bit(weight.data, weight.quant_state).float()
