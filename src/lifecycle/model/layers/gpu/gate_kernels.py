"""silu(gate) up and its gradient, over the joined product of gate and up, in fp32 inside.

Shapes: N rows, F width of the feed-forward part.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Numbers of a row that one program gates: 16 bytes of bf16 a thread."""


@triton.jit
def forward_kernel(gate_up, out, F: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK numbers of one row."""
    n, f = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + n * (2 * F) + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(gate_up + n * (2 * F) + F + f, mask=f < F, other=0.0).to(tl.float32)
    tl.store(out + n * F + f, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=f < F)


@triton.jit
def backward_kernel(grad, gate_up, out, F: tl.constexpr, BLOCK: tl.constexpr):
    """The gradients of BLOCK numbers of a row's gate and of its up: with s = sigmoid(gate),
    d gate = grad up s (1 + gate (1 - s)), d up = grad gate s."""
    n, f = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(grad + n * F + f, mask=f < F, other=0.0).to(tl.float32)
    gate = tl.load(gate_up + n * (2 * F) + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(gate_up + n * (2 * F) + F + f, mask=f < F, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    of_gate = g * up * s * (1.0 + gate * (1.0 - s))
    tl.store(out + n * (2 * F) + f, of_gate.to(out.dtype.element_ty), mask=f < F)
    tl.store(out + n * (2 * F) + F + f, (g * gate * s).to(out.dtype.element_ty), mask=f < F)


def forward(gate_up: Tensor, out: Tensor) -> None:
    """Into `out` (..., F); gate_up (..., 2 F), both contiguous."""
    F = out.shape[-1]
    forward_kernel[(out.numel() // F, triton.cdiv(F, BLOCK))](gate_up, out, F=F, BLOCK=BLOCK, num_warps=4)


def backward(grad: Tensor, gate_up: Tensor, out: Tensor) -> None:
    """Into `out` (..., 2 F); grad (..., F), all contiguous."""
    F = grad.shape[-1]
    backward_kernel[(grad.numel() // F, triton.cdiv(F, BLOCK))](grad, gate_up, out, F=F, BLOCK=BLOCK, num_warps=4)
