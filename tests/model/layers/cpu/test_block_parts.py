"""Our C for the small parts of a block gives what their formulas give in float64, and the gradients of that."""

from collections.abc import Callable

import pytest
import torch
from tests.processors import use_build_with
from torch import Tensor
from torch.nn import functional as F

from lifecycle.model.layers.cpu import block_parts
from lifecycle.model.layers.cpu.block_parts import SLOWER, SOURCE
from lifecycle.model.layers.norm_swiglu import FeedForward, RMSNorm, _Gated, _RMSNorm
from lifecycle.model.layers.rope import rotate
from lifecycle.system.native.c_library import library

pytestmark = pytest.mark.skipif(library(SOURCE, SLOWER) is None, reason="no C compiler here")

CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
"""Of the norm of the difference: what rounding of inputs and results to the dtype amounts to, once each."""


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(CPU).manual_seed(seed), device=CPU).to(dtype)


def agree(ours: Callable[..., object], plain: Callable[..., object], *given: Tensor) -> None:
    """Results and gradients of `ours`, in the dtype given, are those of `plain` in float64."""
    own = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in given]
    twins = [x.detach().double().requires_grad_() for x in given]
    found, wanted = ours(*own), plain(*twins)
    found, wanted = (x if isinstance(x, tuple) else (x,) for x in (found, wanted))
    ups = [drawn(*x.shape, dtype=given[0].dtype, seed=9 + i) for i, x in enumerate(wanted)]
    of_ours = torch.autograd.grad(found, own, ups)
    of_plain = torch.autograd.grad(wanted, twins, [up.double() for up in ups])
    for a, b in zip((*found, *of_ours), (*wanted, *of_plain), strict=True):
        assert a.shape == b.shape and a.dtype in (given[0].dtype, torch.float32)
        assert (a.double() - b).norm() <= CLOSE[given[0].dtype] * b.norm()


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def plain_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1] // 2
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    a = first * cos[..., :half] + second * sin[..., :half]
    b = second * cos[..., half:] + first * sin[..., half:]
    return torch.cat((a, b, rest), dim=-1)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 3), (7, 6), (2, 3, 16), (2, 5, 3, 40), (70, 1100)])
def test_the_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = drawn(*shape, dtype=dtype) * 3, drawn(shape[-1], seed=1)
    assert block_parts.takes(x)
    agree(lambda x, w: _RMSNorm.apply(x, w, 1e-5), plain_norm, x, weight)


@DTYPES
@pytest.mark.parametrize("width", [1, 6, 64, 1100])
def test_the_gate(width: int, dtype: torch.dtype) -> None:
    gate, up = drawn(2, 9, width, dtype=dtype) * 4, drawn(2, 9, width, dtype=dtype, seed=1)
    agree(_Gated.apply, lambda gate, up: F.silu(gate) * up, gate, up)


def test_a_gate_by_hand_and_far_out() -> None:
    gate = torch.tensor([[0.0, 1.0, -1.0, 200.0, -200.0, float("nan")]], device=CPU)
    out = block_parts.gated(gate, torch.full_like(gate, 2.0))
    assert out[0, :5].tolist() == pytest.approx([0.0, 2 * 0.7310586, -2 * 0.2689414, 400.0, 0.0])
    assert bool(out[0, 5].isnan())
    of_gate, of_up = block_parts.gated_gradient(torch.ones_like(gate), gate, torch.ones_like(gate))
    assert of_up[0, :5].tolist() == pytest.approx([0.0, 0.7310586, -0.2689414, 200.0, 0.0])
    assert of_gate[0, :5].tolist() == pytest.approx([0.5, 0.9276705, 0.0723295, 1.0, 0.0])


@DTYPES
@pytest.mark.parametrize("rotated", [2, 8, 24, 64])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_turn_of_a_whole_head_or_of_its_beginning(rotated: int, rows: int, dtype: torch.dtype) -> None:
    x = drawn(2, 5, 3, 64, dtype=dtype)
    # any numbers, not angles' own: the gradient must take the other's sine
    cos, sin = (drawn(rows, 5, 1, rotated, seed=seed) for seed in (1, 2))
    agree(lambda x: rotate(x, cos, sin), lambda x: plain_turn(x, cos.double(), sin.double()), x)


def test_rows_that_stand_apart_or_backwards_are_read_as_they_are() -> None:
    wide = drawn(6, 40)
    for x in (wide[:, 3:19], wide[:, ::2], wide.T, wide[None, :, 5:9].expand(3, 6, 4)):
        own, whole = (
            _RMSNorm.apply(x, torch.ones(x.shape[-1]), 1e-5),
            _RMSNorm.apply(x.clone(), torch.ones(x.shape[-1]), 1e-5),
        )
        assert torch.equal(own, whole)
        assert torch.equal(block_parts.gated(x, x.flip(0)), block_parts.gated(x.clone(), x.flip(0).clone()))
    x = drawn(2, 6, 5, 4).transpose(1, 2)
    cos, sin = drawn(1, 5, 1, 4, seed=1), drawn(1, 5, 1, 4, seed=2)
    assert torch.equal(rotate(x, cos, sin), rotate(x.contiguous(), cos, sin))


def test_no_rows_at_all() -> None:
    x = torch.empty(0, 8, device=CPU, requires_grad=True)
    weight = torch.ones(8, device=CPU, requires_grad=True)
    out = _RMSNorm.apply(x, weight, 1e-5)
    out.sum().backward()
    assert out.shape == (0, 8) and weight.grad is not None and weight.grad.tolist() == [0.0] * 8
    assert block_parts.gated(x, x).shape == (0, 8)


def test_the_same_bits_whatever_the_number_of_threads() -> None:
    x, weight = drawn(900, 72, dtype=torch.bfloat16).requires_grad_(), drawn(72, seed=1).requires_grad_()
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = _RMSNorm.apply(x, weight, 1e-5)
            found.append([out, *torch.autograd.grad(out, (x, weight), drawn(900, 72, dtype=torch.bfloat16, seed=2))])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_tensors_that_it_is_not_for_are_left_to_torch() -> None:
    x = drawn(2, 4)
    assert not block_parts.takes(x.double()) and not block_parts.takes(x.half()) and not block_parts.takes(x.to("meta"))
    assert not block_parts.takes(x, x.bfloat16())
    assert _Gated.apply(x, x.bfloat16()).dtype == torch.float32
    assert RMSNorm(4, eps=1e-5)(x.double()).dtype == torch.float64
    assert FeedForward(width=4, ffn_width=6).half()(x.half()).dtype == torch.float16


def test_shapes_and_devices_that_do_not_fit_are_left_to_torch() -> None:
    """Our C would read behind the end of the smaller one, or what has no numbers."""
    x = drawn(3, 16)
    for width in (8, 32):
        with pytest.raises(RuntimeError, match="must match"):
            RMSNorm(width, eps=1e-5)(x)
    meta = RMSNorm(16, eps=1e-5).to("meta")
    for call in (lambda: meta(x), lambda: _Gated.apply(x, x.to("meta"))):
        with pytest.raises(RuntimeError, match="device"):
            call()
    torch.testing.assert_close(RMSNorm(1, eps=1e-5)(x), RMSNorm(16, eps=1e-5)(x))  # a weight for all
    with pytest.raises(RuntimeError, match="must match"):
        _Gated.apply(x, drawn(6, 8))
    agree(_Gated.apply, lambda gate, up: F.silu(gate) * up, x, drawn(16, seed=1))


def test_angles_that_do_not_fit_are_left_to_torch() -> None:
    x = drawn(2, 5, 3, 8)
    for shape in ((1, 10, 1, 8), (2, 10, 1, 8), (3, 5, 1, 8), (2, 5, 1, 10)):
        with pytest.raises(RuntimeError, match="must match"):
            rotate(x, drawn(*shape), drawn(*shape, seed=1))
    for spread in ((2, 1, 1, 8), (1, 1, 1, 4), (2, 5, 3, 8), (1, 8)):
        cos, sin = drawn(*spread, seed=1), drawn(*spread, seed=2)
        agree(lambda x: rotate(x, cos, sin), lambda x: plain_turn(x, cos.double(), sin.double()), x)  # noqa: B023
    cos, sin = drawn(2, 5, 1, 8, seed=1), drawn(2, 5, 1, 8, seed=2)
    torch.testing.assert_close(rotate(x, cos.double(), sin.double()), rotate(x, cos, sin))


def test_angles_that_learn_get_their_gradients() -> None:
    agree(rotate, plain_turn, drawn(2, 5, 3, 8), drawn(2, 5, 1, 8, seed=1), drawn(2, 5, 1, 8, seed=2))


def test_what_was_kept_may_come_back_in_another_layout() -> None:
    """As hooks of saved tensors may give it."""
    x, weight, found = drawn(6, 16), drawn(16, seed=1), []
    for back in (lambda one: one, lambda one: torch.stack((one, one + 7), -1)[..., 0]):
        own = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda one: one.detach(), back):
            out = _RMSNorm.apply(*own, 1e-5)
        found.append(torch.autograd.grad(out, own, drawn(6, 16, seed=2)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_torch_knows_what_shapes_come_out() -> None:
    x, weight, scale = drawn(6, 40)[:, 3:19], drawn(16, seed=1), drawn(6, 1, seed=2)
    angles = drawn(1, 3, 1, 6, seed=3), drawn(1, 3, 1, 6, seed=4)
    for operator, given in (
        (block_parts.norm, (x, weight, 1e-5)),
        (block_parts.norm_gradient, (x, x, weight.bfloat16(), scale)),
        (block_parts.gated, (x, x)),
        (block_parts.gated_gradient, (x, x, x)),
        (block_parts.turned, (drawn(2, 4, 3, 8).transpose(1, 2), *angles, True)),
    ):
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("flag", ["-mno-avx512bf16", "-mno-avx512f", "-mno-avx2"])
@DTYPES
def test_other_processors(flag: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = drawn(9, 50, dtype=dtype), drawn(50, seed=1)
    turns = drawn(1, 9, 2, 26, dtype=dtype), drawn(1, 9, 1, 22, seed=2), drawn(1, 9, 1, 22, seed=3)

    def everything() -> list[Tensor]:
        out, scale = block_parts.norm(x, weight, 1e-5)
        of_norm, of_gate = block_parts.norm_gradient(x, x, weight, scale), block_parts.gated_gradient(x, x, x)
        return [
            out,
            *of_norm,
            block_parts.gated(x, x),
            *of_gate,
            *(block_parts.turned(*turns, b) for b in (False, True)),
        ]

    wanted = everything()
    use_build_with(flag, block_parts, monkeypatch)
    for a, b in zip(everything(), wanted, strict=True):
        torch.testing.assert_close(a, b)
