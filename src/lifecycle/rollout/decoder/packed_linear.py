"""Products of few rows with joined matrices, in the layout that the device multiplies fastest.

`JoinedLinear` is plain torch, `PackedLinear` is oneDNN on a CPU. Both take over changed weights by `refresh`.

Shapes: B rows, D inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 products are made by the hardware: everywhere but on older CPUs."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def computed_in_fp32(weight: Tensor) -> bool:
    """Whether products with it are best made in fp32 on a CPU: bf16 numbers too, where their products are emulated."""
    if weight.device.type != "cpu":
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and not has_bf16_units(weight.device))


def packs(weight: Tensor) -> bool:
    """Whether `PackedLinear` is the faster for a matrix like this."""
    return torch.backends.mkldnn.is_available() and computed_in_fp32(weight)


class JoinedLinear:
    """y = x W' + b with the rows of several matrices joined into W (N, D); a matrix alone is not copied."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        self.weight, self.bias = joined(weights), joined_biases(biases)

    def __call__(self, x_BD: Tensor) -> Tensor:
        return F.linear(x_BD, self.weight, self.bias)

    def refresh(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """In place: recorded graphs know the address."""
        if len(weights) > 1:
            torch.cat([w.detach() for w in weights], out=self.weight)
            bias = joined_biases(biases)
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias)
        else:
            self.weight, self.bias = joined(weights), joined_biases(biases)


class PackedLinear:
    """The same in fp32, in the layout that oneDNN wants for products with about `rows` rows."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int) -> None:
        self._rows = rows
        self.refresh(weights, biases)

    def __call__(self, x_BD: Tensor) -> Tensor:
        # no SiLU and no sums within the product: oneDNN offers them, and here they take as long as apart from it
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x_BD.float(), self._weight, self._bias, "none", [], "")
        return out.to(x_BD.dtype)

    def refresh(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Lay out changed weights."""
        bias = joined_biases(biases)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(joined(weights).float(), self._rows)
        self._bias = None if bias is None else bias.float()


def linear(layers: Sequence[nn.Linear], rows: int | None) -> JoinedLinear | PackedLinear:
    """Layers with one input as one product; packed for `rows` rows, None: not packed."""
    return matrix([m.weight for m in layers], [m.bias for m in layers], rows)


def refresh_linear(product: JoinedLinear | PackedLinear, layers: Sequence[nn.Linear]) -> None:
    """Take over the changed weights of what `linear` has joined."""
    product.refresh([m.weight for m in layers], [m.bias for m in layers])


def matrix(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int | None) -> JoinedLinear | PackedLinear:
    """The same for bare matrices."""
    return (
        JoinedLinear(weights, biases) if rows is None or not packs(weights[0]) else PackedLinear(weights, biases, rows)
    )


def joined(weights: Sequence[Tensor]) -> Tensor:
    """Matrices (N, D) over one another; one alone is not copied."""
    return weights[0].detach() if len(weights) == 1 else torch.cat([w.detach() for w in weights])


def joined_biases(biases: Sequence[Tensor | None]) -> Tensor | None:
    """Biases (N,) behind one another; None where there are none."""
    given = [b.detach() for b in biases if b is not None]
    return torch.cat(given) if given else None
