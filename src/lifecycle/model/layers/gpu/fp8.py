"""Products of the blocks' linear layers in fp8 by torchao, forward and backward, where a GPU has the units.

    use_fp8(model, "tensorwise")               # in place, before it is compiled

Parameters keep names, class and type: to optimizer, checkpoint, sharding and export it is the same model. Every operand
is scaled by its own largest value before it is rounded (torchao's dynamic scaling; arXiv 2209.05433 has the formats):
inputs and weights to e4m3; gradients to e5m2 under `tensorwise`, to e4m3 under the others. Only what is differentiated
is multiplied so: held-out losses and samples are by the products that an export will have. Embedding, head, norms,
routers and experts are no linear layers of a block and stay as they are.

Shapes: M rows (all positions together), D inputs, N outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifecycle.model.precision import product_dtype

Recipe = Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"]
"""As torchao names them. `tensorwise`: one scale an operand. `rowwise`: one a row, or a column. `rowwise_with_gw_hp`:
the same, and the gradient of the weight by a product in full."""

ALIGNED = 16
"""What the units want of rows, inputs and outputs: multiples of it."""


@dataclass(frozen=True)
class Products:
    """torchao's function, held here so that compiled code imports nothing, and its settings.

    config: how operands are scaled. by_units, emulated: how the rounded ones are multiplied, on a GPU and on a CPU,
    which does it in fp32."""

    matmul: Any
    config: Any
    by_units: Any
    emulated: Any


class Fp8Linear(nn.Linear):
    """A linear layer that `use_fp8` has changed; the class of no parameter."""

    products: Products

    def forward(self, input: Tensor) -> Tensor:
        """(..., N) of (..., D)."""
        if not takes(input, [self]):
            return F.linear(input, self.weight, self.bias)
        dtype = product_dtype(input, self.weight.dtype)
        return product(input.to(dtype), self.weight.to(dtype), self.bias, self.products)


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """A linear layer that is its weight and bias and nothing else: no adapter beside it, not in four bits."""
    return type(layer) in (nn.Linear, Fp8Linear)


def use_fp8(model: nn.Module, recipe: Recipe) -> list[str]:
    """Change the linear layers of `model.blocks` whose sizes are multiples of 16; their names. Imports torchao."""
    found = {
        name: layer
        for name, layer in model.get_submodule("blocks").named_modules(prefix="blocks")
        if type(layer) is nn.Linear and not (layer.in_features % ALIGNED or layer.out_features % ALIGNED)
    }
    products = _made(recipe)
    for layer in found.values():
        layer.__class__ = Fp8Linear
        layer.products = products  # type: ignore[assignment]
    return list(found)


def takes(x: Tensor, layers: Sequence[nn.Module]) -> bool:
    """Whether all of these layers multiply (..., D) x in fp8: for a gradient, and over rows that the units can take."""
    changed, rows = all(type(layer) is Fp8Linear for layer in layers), x.numel() // x.shape[-1]
    return changed and torch.is_grad_enabled() and rows > 0 and rows % ALIGNED == 0  # no rows have no largest value


def product(x: Tensor, weight_ND: Tensor, bias_N: Tensor | None, products: Products) -> Tensor:
    """x weight' + bias (..., N) of (..., D) x, both of the type that comes out; the weight may be several joined."""
    how = products.emulated if x.device.type == "cpu" else products.by_units
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = products.matmul.apply(x, weight_ND.t(), how, products.config)
        return out if bias_N is None else out + bias_N.to(out.dtype)


def _made(recipe: Recipe) -> Products:
    from torchao.float8 import Float8LinearConfig, LinearMMConfig, ScaledMMConfig, convert_to_float8_training
    from torchao.float8.float8_linear import matmul_with_hp_or_float8_args

    # torchao's own door, with nothing to change: it also mends what compilers do wrong with fp8
    convert_to_float8_training(nn.Identity())
    config = Float8LinearConfig.from_recipe_name(recipe)
    gemms = (config.gemm_config_output, config.gemm_config_grad_input, config.gemm_config_grad_weight)

    def multiplied(emulate: bool) -> Any:
        return LinearMMConfig(*(ScaledMMConfig(emulate, gemm.use_fast_accum, False, False) for gemm in gemms))

    return Products(
        matmul=matmul_with_hp_or_float8_args, config=config, by_units=multiplied(False), emulated=multiplied(True)
    )
