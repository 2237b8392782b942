"""Latent attention of one new position over the rows of a cache (see latent.py), never unfolded.

    q, c, shared key: one product;   W_uk' q: one;   attention: one kernel, or two;   W_uv: one product

A program has one row and some of its heads, which all look at the same vectors of the cache. It normalises the new
compressed vector, turns the new shared key and the heads' parts with positions, stores what is new, and goes over the
earlier positions as attend.py does. A vector is read once, and serves as key and as value.

Shapes: B rows of a call, H heads, N width of a head's query without positions, P with them, V width of its value, C
width of a compressed vector, J = C + P, S splits, M heads of a program.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lifecycle.model import Cache
from lifecycle.rollout.decoder.gpu.attend import LOWEST, join, splits, turned
from lifecycle.rollout.decoder.gpu.norm_gate import add_norm
from lifecycle.rollout.decoder.joined_matrices import JoinedLatent

HEADS = 16
"""Heads of a program: the least that matrix units take."""


@triton.jit
def _over_vectors(
    q, turned_q, held, begin, stop, scale, top, total, sums, C: tl.constexpr, P: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The running softmax (top score, total weight, weighted sum) over positions [begin, stop) of a row."""
    c, p, n = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    for start in range(begin, stop, BLOCK_N):
        seen, at = start + n < stop, held + (start + n)[:, None] * (C + P)
        vectors = tl.load(at + c[None, :], mask=seen[:, None] & (c < C)[None, :], other=0.0)
        keys = tl.load(at + C + p[None, :], mask=seen[:, None] & (p < P)[None, :], other=0.0)
        score = tl.dot(q, tl.trans(vectors), input_precision="ieee")
        score = tl.dot(turned_q, tl.trans(keys), score, input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight, shrink = tl.exp2(score - higher[:, None]), tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        sums = sums * shrink[:, None] + tl.dot(weight.to(vectors.dtype), vectors, input_precision="ieee")
        top = higher
    return top, total, sums


@triton.jit(do_not_specialize=["first"])
def latent_kernel(
    query, q_rope, rope_stride, new, new_stride, positions, rows, first, held, cos, sin, norm, out, parts, eps, scale,
    capacity, B, H: tl.constexpr, HEAD: tl.constexpr, C: tl.constexpr, P: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One row, BLOCK_M heads and one part of the positions. query: W_uk' q (H, B, C). q_rope: of head h at h * HEAD.
    new: compressed vector and shared key, as they come from the product."""
    groups = tl.cdiv(H, BLOCK_M)
    b, group, split = tl.program_id(0) // groups, tl.program_id(0) % groups, tl.program_id(1)
    position = tl.load(positions + b).to(tl.int32)
    if rows is None:
        row = (first + b).to(tl.int64)
    else:
        row = tl.load(rows + b).to(tl.int64)
    h, c, p = group * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_P)
    one, there = tl.arange(0, 1), h < H
    held += row * (capacity + 1) * (C + P)
    dtype = held.dtype.element_ty
    angles = tl.where(position < 0, capacity - 1, position) * P
    heads = q_rope + b.to(tl.int64) * rope_stride + h * HEAD
    turned_q = turned(heads, there, cos + angles, sin + angles, norm, eps, P, P, False, BLOCK_P).to(dtype)
    inside = there[:, None] & (c < C)[None, :]
    q = tl.load(query + (h.to(tl.int64) * B + b)[:, None] * C + c[None, :], mask=inside, other=0.0).to(dtype)
    new += b.to(tl.int64) * new_stride
    key = turned(new + C + one, one < 1, cos + angles, sin + angles, norm, eps, P, P, False, BLOCK_P).to(dtype)
    wide = tl.load(new + c, mask=c < C, other=0.0).to(tl.float32)
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / C + eps) * tl.load(norm + c, mask=c < C, other=0.0).to(tl.float32)
    vector = wide.to(new.dtype.element_ty).to(dtype)[None, :]
    mine = split == 0
    slot = tl.where(position < 0, capacity, position) * (C + P)
    stores = mine & (group == 0)
    tl.store(held + slot + c[None, :], vector, mask=(c < tl.where(stores, C, 0))[None, :])
    tl.store(held + slot + C + p[None, :], key, mask=(p < tl.where(stores, P, 0))[None, :])
    begin, stop = 0, tl.maximum(position, 0)
    if SPLIT:
        part = tl.cdiv(tl.cdiv(stop, tl.num_programs(1)), BLOCK_N) * BLOCK_N
        begin = split * part
        stop = tl.minimum(stop, begin + part)
    own = tl.sum(q.to(tl.float32) * vector.to(tl.float32), 1)
    own = (own + tl.sum(turned_q.to(tl.float32) * key.to(tl.float32), 1)) * scale
    top = tl.where(mine, own, LOWEST)
    total = tl.zeros([BLOCK_M], tl.float32) + tl.where(mine, 1.0, 0.0)
    sums = tl.where(mine, vector.to(tl.float32), 0.0) + tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    top, total, sums = _over_vectors(
        q, turned_q, held, begin, stop, scale, top, total, sums, C, P, BLOCK_C, BLOCK_P, BLOCK_N
    )
    line = (b * H + h).to(tl.int64)
    if SPLIT:
        line = line * tl.num_programs(1) + split
        tl.store(out + line[:, None] * C + c[None, :], sums, mask=inside)
        tl.store(parts + line * 2, top, mask=there)
        tl.store(parts + line * 2 + 1, total, mask=there)
    else:
        seen_c = (sums / total[:, None]).to(dtype).to(out.dtype.element_ty)
        tl.store(out + line[:, None] * C + c[None, :], seen_c, mask=inside)


def attend_latent(
    y_BD: Tensor, positions_B: Tensor, cache: Cache, number: int, rows_B: Tensor | slice | None, joined: JoinedLatent
) -> Tensor:
    """(B, H V), before the output matrix, of layer `number`, whose vectors are stored; see `Cache.place`."""
    query_BQ, new_BJ = _query_and_new(y_BD, joined)
    k_up_HNC, v_up_HVC = joined.unfolding()
    (H, N, C), (B, P) = k_up_HNC.shape, (len(y_BD), new_BJ.shape[1] - k_up_HNC.shape[2])
    latent, held, (cos, sin) = joined.attention, cache.keys[number], cache.angles
    query_BHK = query_BQ.unflatten(1, (H, N + P))
    query_HBC = torch.bmm(query_BHK[..., :N].transpose(0, 1), k_up_HNC)
    groups = triton.cdiv(H, HEADS)
    S = splits(B, groups, cache.capacity if cache.limit is None else cache.limit)
    seen_BHC = y_BD.new_empty(B, H, C)
    sums = y_BD.new_empty(B, H, S, C, dtype=torch.float32) if S > 1 else seen_BHC
    parts = y_BD.new_empty(B, H, S, 2, dtype=torch.float32) if S > 1 else None
    sizes = {"BLOCK_C": max(16, triton.next_power_of_2(C)), "BLOCK_P": max(16, triton.next_power_of_2(P))}
    latent_kernel[(B * groups, S)](
        query_HBC, query_BHK[..., N:], query_BQ.stride(0), new_BJ, new_BJ.stride(0), positions_B,
        rows_B if isinstance(rows_B, Tensor) else None, rows_B.start if isinstance(rows_B, slice) else 0, held,
        cos, sin, latent.kv_norm.weight, sums, parts, latent.kv_norm.eps, latent.scale * math.log2(math.e),
        cache.capacity, B, H=H, HEAD=N + P, C=C, P=P, SPLIT=S > 1, BLOCK_M=HEADS, **sizes,
        BLOCK_N=positions_of_a_step(sizes["BLOCK_C"], held.dtype), num_warps=4, num_stages=2,
    )  # fmt: skip
    if parts is not None:
        join(sums, parts, seen_BHC, held.dtype, warps=8)
    out_BHV = y_BD.new_empty(B, *v_up_HVC.shape[:2])
    torch.bmm(seen_BHC.transpose(0, 1), v_up_HVC.mT, out=out_BHV.transpose(0, 1))
    return out_BHV.flatten(1)


def _query_and_new(y_BD: Tensor, joined: JoinedLatent) -> tuple[Tensor, Tensor]:
    """Queries (B, H (N + P)), and compressed vector with shared key (B, J), neither normalised nor turned."""
    attention, both = joined.attention, joined.down(y_BD)
    J = len(attention.kv_down.weight)
    below_BQ, new_BJ = both.split((both.shape[1] - J, J), dim=1)
    if joined.up is None:
        return below_BQ, new_BJ
    return joined.up(add_norm(below_BQ.contiguous(), None, attention.q_norm)[1]), new_BJ


def positions_of_a_step(width: int, dtype: torch.dtype) -> int:
    """Vectors of a step of the loop: 32 KB of them, twice, fit beside what else a program holds."""
    return min(64, max(16, (32 << 10) // (width * dtype.itemsize)))
