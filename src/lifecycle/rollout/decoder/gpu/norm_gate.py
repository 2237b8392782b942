"""What lies between the products of a block: the residual sum with the norm behind it, and silu(gate) up.

One kernel each, rounded where the plain way rounds: after each sum, after the norm, after silu and after its product.

Shapes: B rows, D width, F width of the feed-forward part, A experts that a row visits.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from lifecycle.model.layers.norm_swiglu import RMSNorm

GATE_BLOCK = 1024
"""Numbers of a row that one program gates: 16 bytes of bf16 a thread."""


class Visits(NamedTuple):
    """What the experts that rows visit make, (B, A, D), and what it is multiplied by, (B, A)."""

    out_BAD: Tensor
    weights_BA: Tensor


@triton.jit
def norm_kernel(
    x, added, visits, weights, weight, total, out, eps, A: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """One row: total = x + (sum over A of weights * visits + added), what is None left out, and the RMS norm of it."""
    b, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    at = b * D + d
    row = tl.load(x + at, mask=d < D, other=0.0)
    if added is not None or visits is not None:
        new = tl.zeros([BLOCK_D], tl.float32)
        if visits is not None:
            for a in tl.static_range(A):
                visit = tl.load(visits + (b * A + a) * D + d, mask=d < D, other=0.0).to(tl.float32)
                new += tl.load(weights + b * A + a).to(tl.float32) * visit
        if added is not None:
            new = new.to(row.dtype).to(tl.float32) + tl.load(added + at, mask=d < D, other=0.0).to(tl.float32)
        row = (row.to(tl.float32) + new.to(row.dtype).to(tl.float32)).to(row.dtype)
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


def add_norm(
    x_BD: Tensor, added_BD: Tensor | None, norm: RMSNorm, visits: Visits | None = None
) -> tuple[Tensor, Tensor]:
    """x + added + the weighted sum of visits, and its norm; both (B, D) in the dtype of x. None: nothing is added."""
    B, D = x_BD.shape
    out, total = x_BD.new_empty(B, D), x_BD if added_BD is None and visits is None else x_BD.new_empty(B, D)
    visited, weights = (None, None) if visits is None else visits
    wide = triton.next_power_of_2(D)
    warps = max(1, min(16, wide // 256))
    norm_kernel[(B,)](
        x_BD, added_BD, visited, weights, norm.weight, total, out, norm.eps,
        A=1 if weights is None else weights.shape[1], D=D, BLOCK_D=wide, num_warps=warps,
    )  # fmt: skip
    return total, out


def gated(gate_up_BF: Tensor) -> Tensor:
    """(B, F) of the joined product (B, 2 F)."""
    B, F = len(gate_up_BF), gate_up_BF.shape[1] // 2
    out, block = gate_up_BF.new_empty(B, F), min(GATE_BLOCK, triton.next_power_of_2(F))
    gate_kernel[(B, triton.cdiv(F, block))](gate_up_BF, out, F=F, BLOCK=block, num_warps=4)
    return out
