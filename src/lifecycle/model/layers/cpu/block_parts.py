"""RMS norm, the gate of SwiGLU and rotary positions on a CPU by our own C (block_parts.c), forward and backward.

torch makes and reads an array for every step between; here each is one pass over what comes in and what goes out. The
formulas and what autograd is told stand where they are called (norm_swiglu.py, rope.py). Each is an operator of torch,
so that what records or counts operators sees it.

Shapes: N rows, D width, F width of the feed-forward part, B sequences, T positions, H heads, K width of a head, P
rotated part of it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from lifecycle.system.native.c_library import library

SOURCE = Path(__file__).with_name("block_parts.c")
SLOWER = "the small parts of a block are computed by torch alone, which takes a tenth more of a training step"

DTYPES = (torch.float32, torch.bfloat16)

SIZES = ("N", "D", "half")
"""With which every call begins: rows, numbers of each, and whether these are bf16."""


class _Array(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("row", ctypes.c_long)]


class _Norm(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in SIZES),
        ("eps", ctypes.c_float),
        *((name, _Array) for name in ("x", "out", "grad", "d_x")),
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "d_weight")),
    ]


class _Gate(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in SIZES),
        *((name, _Array) for name in ("gate", "up", "out", "grad", "d_gate", "d_up")),
    ]


class _Turn(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in (*SIZES, "H", "K", "P", "angles", "back")),
        *((name, _Array) for name in ("x", "out")),
        *((name, ctypes.c_void_p) for name in ("cos", "sin")),
    ]


def takes(x: Tensor, *others: Tensor) -> bool:
    """Whether this machine has it, which needs a C compiler once, and it is for tensors like x, whose dtype, shape and
    device the others have; never in compiled code, whose compiler joins such steps itself.

    What it does not take is left to torch, which spreads the smaller one out or says what does not fit: C would read
    behind its end.
    """
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype in DTYPES
        and all(y.dtype == x.dtype and y.shape == x.shape and y.device == x.device for y in others)
        and library(SOURCE, SLOWER) is not None
    )


def takes_norm(x: Tensor, weight_D: Tensor) -> bool:
    """Whether it takes x for a norm with this weight."""
    return takes(x) and weight_D.shape == x.shape[-1:] and weight_D.device == x.device


def takes_turn(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether it takes x for a turn by these angles, as `turned` wants them; none that learn."""
    if not takes(x_BTHK) or x_BTHK.dim() != 4 or sin.shape != cos.shape:
        return False
    (B, T, _, K), P = x_BTHK.shape, cos.shape[-1]
    fit = 0 < P <= K and tuple(cos.shape) in ((B, T, 1, P), (1, T, 1, P))
    return fit and all(
        y.dtype == torch.float32 and y.device == x_BTHK.device and not y.requires_grad for y in (cos, sin)
    )


@torch.library.custom_op("lifecycle::norm_on_cpu", mutates_args=())
def norm(x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x (..., D), in its dtype, and (..., 1) fp32 what each row was multiplied by before the weight."""
    D, out, weight = x.shape[-1], _empty_like(x), weight_D.float().contiguous()
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    arrays = {"x": _rows(x, D), "out": out.view(-1, D)}
    _call("norm_forward", _Norm, arrays, eps=eps, weight=weight.data_ptr(), scale=scale.data_ptr())
    return out, scale


@norm.register_fake
def _(x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


@torch.library.custom_op("lifecycle::norm_gradient_on_cpu", mutates_args=())
def norm_gradient(grad: Tensor, x: Tensor, weight_D: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Of x and of the weight, in their shapes and dtypes."""
    D, d_x, weight = x.shape[-1], _empty_like(x), weight_D.float().contiguous()
    scale, d_weight = scale.float().contiguous(), torch.empty_like(weight)
    pointers = {"weight": weight.data_ptr(), "scale": scale.data_ptr(), "d_weight": d_weight.data_ptr()}
    _call("norm_backward", _Norm, {"x": _rows(x, D), "grad": _rows(grad, D), "d_x": d_x.view(-1, D)}, **pointers)
    return d_x, d_weight.to(weight_D.dtype)


@norm_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight_D: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_like(x), torch.empty_like(weight_D)


@torch.library.custom_op("lifecycle::gated_on_cpu", mutates_args=())
def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up; both (..., F)."""
    F, out = gate.shape[-1], _empty_like(gate)
    _call("gate_forward", _Gate, {"gate": _rows(gate, F), "up": _rows(up, F), "out": out.view(-1, F)})
    return out


@gated.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return _empty_like(gate)


@torch.library.custom_op("lifecycle::gated_gradient_on_cpu", mutates_args=())
def gated_gradient(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Of gate and up, each (..., F)."""
    F, d_gate, d_up = gate.shape[-1], _empty_like(gate), _empty_like(up)
    given = {name: _rows(x, F) for name, x in (("grad", grad), ("gate", gate), ("up", up))}
    _call("gate_backward", _Gate, {**given, "d_gate": d_gate.view(-1, F), "d_up": d_up.view(-1, F)})
    return d_gate, d_up


@gated_gradient.register_fake
def _(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_like(gate), _empty_like(up)


@torch.library.custom_op("lifecycle::turned_on_cpu", mutates_args=())
def turned(x_BTHK: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """x, turned by fp32 angles (B or 1, T, 1, P). back: x is a gradient in what came out of that; the gradient in x."""
    (H, K), P, out = x_BTHK.shape[2:], cos.shape[-1], _empty_like(x_BTHK)
    cos, sin = cos.contiguous(), sin.contiguous()
    assert cos.dtype == sin.dtype == torch.float32
    sizes = {"H": H, "K": K, "P": P, "angles": cos.numel() // P, "back": back}
    arrays = {"x": _rows(x_BTHK, H * K), "out": out.view(-1, H * K)}
    _call("turn", _Turn, arrays, **sizes, cos=cos.data_ptr(), sin=sin.data_ptr())
    return out


@turned.register_fake
def _(x_BTHK: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return _empty_like(x_BTHK)


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rows(x: Tensor, width: int) -> Tensor:
    """x to be read, as rows of `width` numbers that stand side by side; a copy only where they do not."""
    rows = x.reshape(-1, width)
    return rows if _side_by_side(rows) else rows.contiguous()


def _side_by_side(rows: Tensor) -> bool:
    return rows.numel() == 0 or rows.shape[-1] == 1 or rows.stride(-1) == 1


def _call(name: str, kind: type[ctypes.Structure], arrays: dict[str, Tensor], **others: float | int) -> None:
    """Call the C function of this name; arrays: rows of one number and of one dtype."""
    found, first = library(SOURCE, SLOWER), next(iter(arrays.values()))
    assert found is not None and first.dtype in DTYPES
    assert all(x.dtype == first.dtype and len(x) == len(first) and _side_by_side(x) for x in arrays.values())
    places = {key: _Array(x.data_ptr(), x.stride(0)) for key, x in arrays.items()}
    sizes = (*first.shape, first.dtype == torch.bfloat16)
    if getattr(found, name)(ctypes.byref(kind(*sizes, **places, **others)), torch.get_num_threads()):
        raise MemoryError(f"{name} found no memory for its sums")
