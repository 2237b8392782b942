"""Joined and packed products, and the norm of the decode step, are the layers that they stand for."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lifecycle.model.layers.norm_swiglu import RMSNorm
from lifecycle.rollout.decoder.joined_blocks import rms_norm
from lifecycle.rollout.decoder.packed_linear import JoinedLinear, PackedLinear, linear, packs

PACKED = pytest.mark.skipif(not packs(torch.empty(1, 1)), reason="needs oneDNN")
ROWS = [None, pytest.param(4, marks=PACKED)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def changed(part: nn.Module, refresh: Callable[[], None]) -> None:
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(1.5)
    refresh()


@pytest.mark.parametrize("rows", ROWS)
@torch.no_grad()
def test_layers_with_one_input_are_one_product(rows: int | None) -> None:
    layers, x = [nn.Linear(24, n) for n in (16, 8, 8)], drawn(5, 24)
    made = linear(layers, rows)
    assert type(made) is (JoinedLinear if rows is None else PackedLinear)

    def check() -> None:
        same(made(x), torch.cat([layer(x) for layer in layers], dim=-1))

    check()
    changed(nn.ModuleList(layers), lambda: made.refresh([m.weight for m in layers], [m.bias for m in layers]))
    check()


@PACKED
@torch.no_grad()
def test_bf16_matrices_give_bf16() -> None:
    weight, x = drawn(6, 8).bfloat16(), drawn(3, 8, seed=1).bfloat16()
    torch.testing.assert_close(PackedLinear([weight], [], 3)(x), F.linear(x.float(), weight.float()).bfloat16())


@torch.no_grad()
def test_the_norm_is_that_of_the_model() -> None:
    norm, x = RMSNorm(24, eps=1e-5), drawn(5, 24) * torch.tensor([1e-4, 1e-2, 1.0, 10.0, 0.0])[:, None]
    norm.weight.normal_()
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(rms_norm(x.to(dtype), norm), norm(x.to(dtype)).to(dtype))
    assert rms_norm(x.bfloat16(), norm).dtype == torch.bfloat16
