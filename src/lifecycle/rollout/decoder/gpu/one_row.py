"""Products of one row, which take as long as their weights take to be read, with what lies before and behind them.

    product(x, qkv, norm=norm)                  RMSNorm(x) W' + b
    product(x, gate_up, norm=norm, gated=True)  silu(RMSNorm(x) W_gate') * RMSNorm(x) W_up'
    product(x, o, added=residual)               residual + x W'
    visit_products(x, chosen, gate, up=up)      the same of each visit of an expert, by the expert's own matrices

A program reads some rows of W once and whole, so no sum is split and the bits do not depend on who is done first. There
is no use for matrix units: numbers are multiplied in fp32 as they come, and all loads are under way at once. The scale
of the norm is a factor of the result and is found on the way.

Shapes: D inputs, N outputs, B rows, A experts that a row visits, E experts, M visits, which are B A.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lifecycle.model.layers.norm_swiglu import RMSNorm
from lifecycle.rollout.decoder.packed_linear import JoinedLinear


@triton.jit
def product_kernel(
    x, norm, weight, up, bias, added, chosen, chosen_stride, out, eps, N: tl.constexpr, D: tl.constexpr,
    A: tl.constexpr, SHARED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of a row. up: (N, D), multiplied by silu of what weight (N, D) makes; None: there is none.
    chosen: the experts (B, A) whose matrices these are, for rows that SHARED visits have in common; None: one row."""
    if chosen is not None:
        visit = tl.program_id(1).to(tl.int64)
        matrix = tl.load(chosen + visit // A * chosen_stride + visit % A) * (N * D)
        weight += matrix
        if up is not None:
            up += matrix
        x += visit // SHARED * D
        out += visit * N
    n, d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    sums = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    up_sums = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    squares = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in tl.static_range(0, D, BLOCK_D):
        there = (n < N)[:, None] & (start + d < D)[None, :]
        at = n[:, None] * D + (start + d)[None, :]
        w = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
        # x for each output, from the nearest cache: each thread has all that it multiplies, and waits for no other
        along = (n * 0)[:, None] + (start + d)[None, :]
        row = tl.load(x + along, mask=along < D, other=0.0).to(tl.float32)
        if norm is not None:
            squares += row * row
            row *= tl.load(norm + along, mask=along < D, other=0.0).to(tl.float32)
        sums += w * row
        if up is not None:
            up_sums += tl.load(up + at, mask=there, other=0.0).to(tl.float32) * row
    total, up_total = tl.sum(sums, 1), tl.sum(up_sums, 1)
    if norm is not None:
        scale = tl.rsqrt(tl.sum(squares, 1) / D + eps)
        total, up_total = total * scale, up_total * scale
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    total = total.to(out.dtype.element_ty).to(tl.float32)
    if up is not None:
        total = (total * tl.sigmoid(total)).to(out.dtype.element_ty).to(tl.float32)
        total *= up_total.to(out.dtype.element_ty).to(tl.float32)
    if added is not None:
        total += tl.load(added + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + n, total.to(out.dtype.element_ty), mask=n < N)


def block_sizes(D: int) -> dict[str, int]:
    """Outputs of a program, inputs of a step, and warps: so many threads that each reads 16 bytes some five times, and
    a multiprocessor all that is its share at once."""
    outputs, inputs = (4, 512) if D <= 2048 else (2, 1024)
    inputs = min(inputs, max(16, triton.next_power_of_2(D)))
    return {"BLOCK_N": outputs, "BLOCK_D": inputs, "num_warps": max(1, outputs * inputs // 256)}


def product(
    x_1D: Tensor, matrix: JoinedLinear, *, norm: RMSNorm | None = None, added: Tensor | None = None, gated: bool = False
) -> Tensor:
    """(1, N), or half as many where gated; see the top of this file. added: (1, N)."""
    D, N = x_1D.shape[1], len(matrix.weight) // (2 if gated else 1)
    out, blocks, weight = x_1D.new_empty(1, N), block_sizes(D), matrix.weight.contiguous()
    product_kernel[(triton.cdiv(N, blocks["BLOCK_N"]),)](
        x_1D, None if norm is None else norm.weight, weight, weight[N:] if gated else None, matrix.bias,
        added, None, 0, out, 0.0 if norm is None else norm.eps, N=N, D=D, A=1, SHARED=1, **blocks,
    )  # fmt: skip
    return out


def visit_products(
    x_RD: Tensor, chosen_BA: Tensor, weight_END: Tensor, out_MN: Tensor, *, up: Tensor | None = None
) -> None:
    """Fill in the products of every visit with its expert's matrix; x has a row for each visit, or for each B. up:
    (E, N, D), multiplied by silu of the products with the first."""
    (N, D), (M, A) = weight_END.shape[1:], (len(out_MN), chosen_BA.shape[1])
    blocks = block_sizes(D)
    product_kernel[(triton.cdiv(N, blocks["BLOCK_N"]), M)](
        x_RD, None, weight_END, up, None, None, chosen_BA, chosen_BA.stride(0), out_MN, 0.0, N=N, D=D, A=A,
        SHARED=M // len(x_RD), **blocks,
    )  # fmt: skip
