"""What lies between the products of a block: the residual sum with the norm behind it, and silu(gate) up.

One kernel each, rounded where the plain way rounds: after the sum, after the norm, after silu and after its product.

Shapes: B rows, D width, F width of the feed-forward part.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lifecycle.model.layers.norm_swiglu import RMSNorm

GATE_BLOCK = 1024
"""Numbers of a row that one program gates: 16 bytes of bf16 a thread."""


@triton.jit
def norm_kernel(x, added, weight, total, out, eps, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """One row: total = x + added, unless that is None, and the RMS norm of it."""
    d = tl.arange(0, BLOCK_D)
    at = tl.program_id(0).to(tl.int64) * D + d
    row = tl.load(x + at, mask=d < D, other=0.0)
    if added is not None:
        row = (row.to(tl.float32) + tl.load(added + at, mask=d < D, other=0.0).to(tl.float32)).to(row.dtype)
        tl.store(total + at, row, mask=d < D)
    wide = row.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / D + eps)
    normed = wide * scale * tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + at, normed.to(row.dtype), mask=d < D)


@triton.jit
def gate_kernel(gate_up, out, F: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK numbers of one row of silu(gate) up."""
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(0).to(tl.int64)
    gate = tl.load(gate_up + b * (2 * F) + f, mask=f < F, other=0.0)
    up = tl.load(gate_up + b * (2 * F) + F + f, mask=f < F, other=0.0)
    wide = gate.to(tl.float32)
    gated = (wide * tl.sigmoid(wide)).to(gate.dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(out + b * F + f, gated.to(gate.dtype), mask=f < F)


def add_norm(x_BD: Tensor, added_BD: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    """x + added, and its norm; both (B, D) in the dtype of x. added None: nothing is added."""
    B, D = x_BD.shape
    out, total = x_BD.new_empty(B, D), x_BD if added_BD is None else x_BD.new_empty(B, D)
    wide = triton.next_power_of_2(D)
    warps = max(1, min(16, wide // 256))
    norm_kernel[(B,)](x_BD, added_BD, norm.weight, total, out, norm.eps, D=D, BLOCK_D=wide, num_warps=warps)
    return total, out


def gated(gate_up_BF: Tensor) -> Tensor:
    """(B, F) of the joined product (B, 2 F)."""
    B, F = len(gate_up_BF), gate_up_BF.shape[1] // 2
    out, block = gate_up_BF.new_empty(B, F), min(GATE_BLOCK, triton.next_power_of_2(F))
    gate_kernel[(B, triton.cdiv(F, block))](gate_up_BF, out, F=F, BLOCK=block, num_warps=4)
    return out
