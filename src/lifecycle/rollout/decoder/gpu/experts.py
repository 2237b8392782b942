"""The outputs of the chosen experts for each row, without the host, for any dtype and width.

A row's visit of an expert is a row of the products. Few rows: each visit multiplies by itself (one_row.py). More:
visits are sorted by expert; a program has some outputs of one expert, and goes over its visits block by block:

    inner = silu(gate_e x) * up_e x        for the visits m in the order of experts
    out   = down_e inner                   for the visits in the order of rows

Gate and up are read where the model holds them. The weighted sum of a row's visits is left to the norm that follows
(norm_gate.py).

Shapes: B rows, A experts a row visits, M = B A visits, E experts, D width, F width of an expert, K inputs and N outputs
of a product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from lifecycle.model.layers.moe import MoEFeedForward
from lifecycle.rollout.decoder.gpu.norm_gate import Visits, gated
from lifecycle.rollout.decoder.gpu.one_row import visit_products
from lifecycle.rollout.decoder.gpu.route import route
from lifecycle.rollout.decoder.joined_matrices import JoinedExperts

FEW_ROWS = 4
"""Up to so many rows seldom meet at an expert, so that nearly every visit has to read its matrices anyway."""

CHUNK = 2048
"""Visits that a program sorts at a time."""


@triton.jit(do_not_specialize=["M"])
def sort_kernel(chosen, chosen_stride, order, bounds, M, A: tl.constexpr, CHUNK: tl.constexpr):
    """Expert e: its visits, in their order, go to order[bounds[e, 0] : bounds[e, 1]]."""
    e = tl.program_id(0)
    before = 0
    for start in range(0, M, CHUNK):
        m = start + tl.arange(0, CHUNK)
        expert = tl.load(chosen + (m // A).to(tl.int64) * chosen_stride + m % A, mask=m < M, other=e)
        before += tl.sum((expert < e).to(tl.int32), 0)
    tl.store(bounds + 2 * e, before)
    for start in range(0, M, CHUNK):
        m = start + tl.arange(0, CHUNK)
        expert = tl.load(chosen + (m // A).to(tl.int64) * chosen_stride + m % A, mask=m < M, other=-1)
        mine = (expert == e).to(tl.int32)
        tl.store(order + before + tl.cumsum(mine, 0) - 1, m, mask=mine > 0)
        before += tl.sum(mine, 0)
    tl.store(bounds + 2 * e + 1, before)


@triton.jit
def expert_kernel(
    x, order, bounds, weight, up, out, A: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of one expert. up: gate and up of x (B, K), to out (M, N) in the order of experts. None: down of
    x (M, K) in that order, to out in the order of rows."""
    n, e = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.program_id(1)
    begin, stop = tl.load(bounds + 2 * e), tl.load(bounds + 2 * e + 1)
    lines = e.to(tl.int64) * (N * K) + n[:, None] * K
    for start in range(begin, stop, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        visit = tl.load(order + m, mask=m < stop, other=0)
        if up is None:
            read, written = m, visit
        else:
            read, written = visit // A, m
        rows = x + read.to(tl.int64)[:, None] * K
        sums, up_sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in range(0, K, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            row = tl.load(rows + k[None, :], mask=(m < stop)[:, None] & (k < K)[None, :], other=0.0)
            inside = (n < N)[:, None] & (k < K)[None, :]
            w = tl.load(weight + lines + k[None, :], mask=inside, other=0.0)
            sums = tl.dot(row, tl.trans(w), sums, input_precision="ieee")
            if up is not None:
                w = tl.load(up + lines + k[None, :], mask=inside, other=0.0)
                up_sums = tl.dot(row, tl.trans(w), up_sums, input_precision="ieee")
        if up is not None:  # rounded where the plain way rounds
            sums = sums.to(out.dtype.element_ty).to(tl.float32)
            sums = (sums * tl.sigmoid(sums)).to(out.dtype.element_ty).to(tl.float32)
            sums *= up_sums.to(out.dtype.element_ty).to(tl.float32)
        at = out + written.to(tl.int64)[:, None] * N + n[None, :]
        tl.store(at, sums.to(out.dtype.element_ty), mask=(m < stop)[:, None] & (n < N)[None, :])


def block_sizes(x: Tensor, visits: int, experts: int) -> dict[str, int]:
    """Of `expert_kernel`, from the shapes alone. An expert that few visit is done when its matrices are read: small
    blocks of rows, and much of a row at once. In fp32 larger ones do not fit into registers."""
    wide = x.element_size() == 4
    rows = min(32 if wide else 64, max(16, triton.next_power_of_2(visits // experts)))
    few = rows <= 32
    inputs = (128 if few else 64) // (2 if wide else 1)
    outputs, stages = (32, 4) if few else (64, 3)
    return {"BLOCK_M": rows, "BLOCK_N": outputs, "BLOCK_K": inputs, "num_warps": 4, "num_stages": stages}


class ExpertsOnGPU:
    """A feed-forward part with experts. Its bits of a row depend on the number of rows, and on no other row."""

    def __init__(self, joined: JoinedExperts) -> None:
        self._joined = joined

    def __call__(self, y_BD: Tensor, chosen_BA: Tensor) -> tuple[Tensor | None, Visits]:
        """The output of shared experts (B, D), None without any, and of the others. chosen: is filled in."""
        ffn = self._joined.ffn
        logits_BE = F.linear(y_BD.float(), self._joined.router)
        weights_BA = y_BD.new_empty(chosen_BA.shape)
        route(logits_BE, ffn.router.bias, ffn.moe, chosen_BA, weights_BA)
        return self._shared(y_BD), Visits(_outputs(y_BD, chosen_BA, ffn), weights_BA)

    def _shared(self, y_BD: Tensor) -> Tensor | None:
        shared, gate = self._joined.shared, self._joined.ffn.shared_gate
        if shared is None:
            return None
        out_BD = shared.down(gated(shared.gate_up(y_BD)))
        return out_BD if gate is None else out_BD.mul_(F.linear(y_BD, gate.weight).sigmoid_())


def _outputs(y_BD: Tensor, chosen_BA: Tensor, ffn: MoEFeedForward) -> Tensor:
    """(B, A, D), before they are weighted."""
    matrices = ffn.experts.gate_proj, ffn.experts.up_proj, ffn.experts.down_proj
    # weights that a user lent may lie otherwise, which kernels cannot see: copied at each step, slowly and rightly
    gate, up, down = (m.detach().contiguous() for m in matrices)
    (B, A), (E, N, D) = chosen_BA.shape, gate.shape
    inner_MF, out_MD = y_BD.new_empty(B * A, N), y_BD.new_empty(B * A, D)
    if B <= FEW_ROWS:
        visit_products(y_BD, chosen_BA, gate, inner_MF, up=up)
        visit_products(inner_MF, chosen_BA, down, out_MD)
        return out_MD.view(B, A, D)
    order_M, bounds_E2 = (chosen_BA.new_empty(n, dtype=torch.int32) for n in (B * A, 2 * E))
    chunk = min(CHUNK, triton.next_power_of_2(B * A))
    sort_kernel[(E,)](chosen_BA, chosen_BA.stride(0), order_M, bounds_E2, B * A, A=A, CHUNK=chunk, num_warps=4)
    blocks = block_sizes(y_BD, B * A, E)
    for x, w, w_up, out in ((y_BD, gate, up, inner_MF), (inner_MF, down, None, out_MD)):
        n, k = w.shape[1:]
        grid = triton.cdiv(n, blocks["BLOCK_N"]), E
        expert_kernel[grid](x, order_M, bounds_E2, w, w_up, out, A=A, N=n, K=k, **blocks)
    return out_MD.view(B, A, D)
