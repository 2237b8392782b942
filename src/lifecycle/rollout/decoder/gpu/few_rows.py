"""Products of a few rows, which take as long as their weights take to be read, with what lies before and behind them.

    product(x, qkv, norm=norm)                  RMSNorm(x) W' + b
    product(x, gate_up, norm=norm, gated=True)  silu(RMSNorm(x) W_gate') * RMSNorm(x) W_up'
    product(x, o, added=residual)               residual + x W'

A program reads some rows of W once and whole, so no sum is split and the bits do not depend on who is done first. The
scale of the norm is a factor of the result: it is found on the way, and x times the norm's weight is what is rounded.

Shapes: B rows, D inputs, N outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lifecycle.model.layers.norm_swiglu import RMSNorm
from lifecycle.rollout.decoder.packed_linear import JoinedLinear

FEW_ROWS = 8
"""Most rows for which these products are taken in place of the library's."""

BLOCK_B = 16
"""Rows of a product of matrix units."""


@triton.jit
def product_kernel(
    x, norm, weight, bias, added, out, eps, B, N: tl.constexpr, D: tl.constexpr, GATED: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of all rows. GATED: weight is (2 N, D), first what is gated by silu."""
    b, d = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_D)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
    up_sums = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for start in range(0, D, BLOCK_D):
        inside = start + d < D
        row = tl.load(x + b[:, None] * D + (start + d)[None, :], mask=(b < B)[:, None] & inside[None, :], other=0.0)
        at = n[:, None] * D + (start + d)[None, :]
        there = (n < N)[:, None] & inside[None, :]
        w = tl.load(weight + at, mask=there, other=0.0)
        if norm is not None:
            wide = row.to(tl.float32)
            squares += wide * wide
            row = (wide * tl.load(norm + start + d, mask=inside, other=0.0).to(tl.float32)[None, :]).to(row.dtype)
        sums = tl.dot(row, tl.trans(w), sums, input_precision="ieee")
        if GATED:
            up = tl.load(weight + N * D + at, mask=there, other=0.0)
            up_sums = tl.dot(row, tl.trans(up), up_sums, input_precision="ieee")
    if norm is not None:
        scale = tl.rsqrt(tl.sum(squares, 1) / D + eps)[:, None]
        sums, up_sums = sums * scale, up_sums * scale
    if bias is not None:
        sums += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    to = b[:, None] * N + n[None, :]
    wanted = (b < B)[:, None] & (n < N)[None, :]
    sums = sums.to(out.dtype.element_ty).to(tl.float32)
    if GATED:
        sums = (sums * tl.sigmoid(sums)).to(out.dtype.element_ty).to(tl.float32)
        sums *= up_sums.to(out.dtype.element_ty).to(tl.float32)
    if added is not None:
        sums += tl.load(added + to, mask=wanted, other=0.0).to(tl.float32)
    tl.store(out + to, sums.to(out.dtype.element_ty), mask=wanted)


def block_sizes(N: int, D: int, itemsize: int) -> dict[str, int]:
    """Outputs and inputs of a program's step, and how it is run: enough programs for all multiprocessors."""
    return {
        "BLOCK_N": 16 if N >= 1536 else 8,
        "BLOCK_D": min(512 // itemsize, max(16, triton.next_power_of_2(D))),
        "num_warps": 4,
        "num_stages": 5 if itemsize == 2 else 3,
    }


def product(
    x_BD: Tensor, matrix: JoinedLinear, *, norm: RMSNorm | None = None, added: Tensor | None = None, gated: bool = False
) -> Tensor:
    """(B, N), or half as many where gated; see the top of this file. added: (B, N). B: `FEW_ROWS` at most."""
    (B, D), N = x_BD.shape, len(matrix.weight) // (2 if gated else 1)
    out, blocks = x_BD.new_empty(B, N), block_sizes(N, D, x_BD.element_size())
    product_kernel[(triton.cdiv(N, blocks["BLOCK_N"]),)](
        x_BD, None if norm is None else norm.weight, matrix.weight, matrix.bias, added, out,
        0.0 if norm is None else norm.eps, B, N=N, D=D, GATED=gated, BLOCK_B=BLOCK_B, **blocks,
    )  # fmt: skip
    return out
