"""Joined and packed products, and the norm of the decode step, are the layers that they stand for."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lifecycle.model.layers import FeedForward, RMSNorm
from lifecycle.rollout.joined import rms_norm
from lifecycle.rollout.products import Packed, PackedGate, Wide, WideGate, gate, linear, packs

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
    layers, x, other = [nn.Linear(24, n) for n in (16, 8, 8)], drawn(5, 24), drawn(5, 32, seed=1)
    made = linear(layers, rows)
    assert type(made) is (Wide if rows is None else Packed)

    def check() -> None:
        wanted = torch.cat([layer(x) for layer in layers], dim=-1)
        same(made(x), wanted)
        same(made.plus(x, other), wanted + other)

    check()
    changed(nn.ModuleList(layers), lambda: made.refresh([m.weight for m in layers], [m.bias for m in layers]))
    check()


@PACKED
@torch.no_grad()
def test_what_follows_a_packed_product_by_hand() -> None:
    made = Packed([torch.tensor([[1.0, 2.0], [0.0, -1.0]])], [], 1)
    x, other = torch.tensor([[1.0, 1.0]]), torch.tensor([[10.0, 100.0]])
    assert made(x).tolist() == [[3.0, -1.0]]
    assert made.plus(x, other).tolist() == [[13.0, 99.0]]
    assert made.times(x, other).tolist() == [[30.0, -100.0]]
    same(made(x, "swish"), torch.tensor([[3 / (1 + torch.e**-3), -1 / (1 + torch.e)]]))


@PACKED
@torch.no_grad()
def test_bf16_matrices_give_bf16() -> None:
    weight, x = drawn(6, 8).bfloat16(), drawn(3, 8, seed=1).bfloat16()
    torch.testing.assert_close(Packed([weight], [], 3)(x), F.linear(x.float(), weight.float()).bfloat16())


@pytest.mark.parametrize("rows", ROWS)
@torch.no_grad()
def test_a_gate_is_the_first_half_of_the_feed_forward_part(rows: int | None) -> None:
    ffn, x = FeedForward(width=16, ffn_width=40), drawn(5, 16)
    made = gate(ffn.gate_proj.weight, ffn.up_proj.weight, rows)
    assert type(made) is (WideGate if rows is None else PackedGate)
    same(ffn.down_proj(made(x)), ffn(x))
    changed(ffn, lambda: made.refresh(ffn.gate_proj.weight, ffn.up_proj.weight))
    same(ffn.down_proj(made(x)), ffn(x))


@torch.no_grad()
def test_the_norm_is_that_of_the_model() -> None:
    norm, x = RMSNorm(24, eps=1e-5), drawn(5, 24) * torch.tensor([1e-4, 1e-2, 1.0, 10.0, 0.0])[:, None]
    norm.weight.normal_()
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(rms_norm(x.to(dtype), norm), norm(x.to(dtype)).to(dtype))
    assert rms_norm(x.bfloat16(), norm).dtype == torch.bfloat16
