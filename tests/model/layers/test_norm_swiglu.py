"""Laws of the norm and the gated part of a block in training: values and gradients are those of the plain formulas."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.model.layers.cpu import block_parts
from lifecycle.model.layers.norm_swiglu import FeedForward, RMSNorm


@pytest.fixture(params=["our C", "torch alone"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who computes it."""
    if request.param == "torch alone":
        monkeypatch.setattr(block_parts, "takes", lambda *_: False)
    return str(request.param)


def equal(a: Tensor, b: Tensor, by: str) -> None:
    """Bit for bit by torch; our C rounds between fewer steps."""
    if by == "torch alone":
        assert torch.equal(a, b)
    else:
        assert a.dtype == b.dtype
        near = 1e-5 if a.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(a, b, rtol=near, atol=near * float(b.abs().max()))


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x if x.dtype == torch.float64 else x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def with_gradients(function: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    """What it gives, and the gradients of a weighted sum of it."""
    own = [one.detach().clone().requires_grad_() for one in given]
    out = function(*own)
    factor = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device="cpu").view(out.shape)
    (out * factor.to(out.dtype)).sum().backward()
    return [out.detach(), *[one.grad for one in own if one.grad is not None]]


def drawn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_in_training_is_the_plain_one(dtype: torch.dtype, weight_dtype: torch.dtype, by: str) -> None:
    norm = RMSNorm(48, eps=1e-5)
    x, weight = drawn(2, 5, 48, seed=1, dtype=dtype) * 3, drawn(48, seed=2, dtype=weight_dtype)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(norm, {"weight": weight}, (x,))
        return out

    mine = with_gradients(ours, x, weight)
    theirs = with_gradients(lambda x, w: plain_norm(x, w, 1e-5), x, weight)
    equal(mine[0], theirs[0], by)
    tolerance = 1e-5 if dtype == weight_dtype == torch.float32 else 2e-2
    for a, b in zip(mine[1:], theirs[1:], strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_the_gradients_are_those_of_finite_differences() -> None:
    norm, gated = RMSNorm(6, eps=1e-5).double(), FeedForward(width=6, ffn_width=10).double()
    x = drawn(2, 3, 6, seed=3, dtype=torch.float64).requires_grad_()
    for module in (norm, gated):
        weights = tuple(module.parameters())

        def at(x: Tensor, *given: Tensor, module: torch.nn.Module = module) -> Tensor:
            names = [name for name, _ in module.named_parameters()]
            out: Tensor = torch.func.functional_call(module, dict(zip(names, given, strict=True)), (x,))
            return out

        assert torch.autograd.gradcheck(at, (x, *weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gated_part_in_training_is_the_plain_one(dtype: torch.dtype, by: str) -> None:
    module = FeedForward(width=32, ffn_width=80).to(dtype)
    gate, up, down = (p.detach() for p in (module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight))
    x = drawn(2, 7, 32, seed=4, dtype=dtype)
    names = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]

    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))
        return out

    def plain(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    for a, b in zip(with_gradients(ours, x, gate, up, down), with_gradients(plain, x, gate, up, down), strict=True):
        equal(a, b, by)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    norm = RMSNorm(8, eps=1e-5)
    norm.weight.requires_grad_(False)
    x = drawn(3, 8, seed=5, dtype=torch.float32).requires_grad_()
    norm(x).sum().backward()
    assert x.grad is not None and norm.weight.grad is None
    with torch.no_grad():
        assert norm(x).grad_fn is None
    still = drawn(3, 8, seed=5, dtype=torch.float32)
    assert not norm(still).requires_grad


def kept(run: Callable[[], Tensor]) -> int:
    """Bytes that the backward pass of what is run holds."""
    held: dict[int, int] = {}

    def pack(one: Tensor) -> Tensor:
        held[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        return one

    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        out = run()
    assert out.requires_grad
    return sum(held.values())


def test_a_block_keeps_few_tensors_for_its_backward_pass() -> None:
    norm, module = RMSNorm(16, eps=1e-5), FeedForward(width=16, ffn_width=40)
    x = drawn(2, 50, 16, seed=6, dtype=torch.float32).requires_grad_()
    weights = 4 * sum(p.numel() for p in module.parameters())
    assert kept(lambda: norm(x)) <= 4 * (x.numel() + 100 + 16)
    assert kept(lambda: module(x)) <= 4 * (x.numel() + 3 * 100 * 40) + weights
