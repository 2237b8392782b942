"""Attention of one new position over the rows of a cache, in one kernel or, split over keys, in two.

A program has one row and one key-value head. It normalises and turns the new query heads that read this head, and its
new key, stores key and value, and goes over the earlier positions that the row has seen (FlashAttention's running
softmax, arXiv 2205.14135, algorithm 1; split over keys, Flash-Decoding). The new key and value come from registers:
what is stored is not read again. Padding (position -1) is stored in the last slot and sees itself alone.

Shapes: B rows of a call, H query heads, G key-value heads, K width of a head, P rotated part of it, S splits, M query
heads of a program.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lifecycle.model import Cache
from lifecycle.rollout.decoder.joined_matrices import JoinedAttention

LOWEST = tl.constexpr(-1.0e30)
"""A score below all others; finite, so that the difference of two is a number."""

PROGRAMS = 792
"""Programs that fill a GPU: six for each of its 132 multiprocessors."""

SPLIT_KEYS = 128
"""Fewest positions worth a program of their own: joining the parts takes a kernel more."""

HELD = 4096
"""Numbers of the parts that a warp joins at a time: half of its registers."""


@triton.jit
def turned(
    heads, there, cos, sin, norm, eps, K: tl.constexpr, P: tl.constexpr, NORMED: tl.constexpr, BLOCK_K: tl.constexpr
):
    """(M, BLOCK_K): heads at the addresses `heads` (M,), normalised if NORMED, then turned; rounded to their dtype."""
    k = tl.arange(0, BLOCK_K)
    partner = tl.where(k < P, (k + P // 2) % P, k)
    inside = there[:, None] & (k < K)[None, :]
    x = tl.load(heads[:, None] + k[None, :], mask=inside, other=0.0)
    dtype = x.dtype
    x = x.to(tl.float32)
    other = tl.load(heads[:, None] + partner[None, :], mask=inside, other=0.0).to(tl.float32)
    if NORMED:
        scale = tl.rsqrt(tl.sum(x * x, 1) / K + eps)[:, None]
        x_weight = tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
        other_weight = tl.load(norm + partner, mask=k < K, other=0.0).to(tl.float32)
        x = (x * scale * x_weight[None, :]).to(dtype).to(tl.float32)
        other = (other * scale * other_weight[None, :]).to(dtype).to(tl.float32)
    turn = tl.load(cos + k, mask=k < P, other=1.0)[None, :]
    turn_other = tl.load(sin + k, mask=k < P, other=0.0)[None, :]
    return (x * turn + other * turn_other).to(dtype)


@triton.jit
def _over_keys(
    q, keys, values, begin, stop, scale, top, total, sums, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The running softmax (top score, total weight, weighted sum of values) over positions [begin, stop) of a head.
    scale: of scores as powers of two."""
    k, n = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_N)
    for start in range(begin, stop, BLOCK_N):
        seen = start + n < stop
        inside = seen[:, None] & (k < K)[None, :]
        at = (start + n)[:, None] * K + k[None, :]
        key = tl.load(keys + at, mask=inside, other=0.0)
        score = tl.dot(q, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        value = tl.load(values + at, mask=inside, other=0.0)
        sums = sums * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        top = higher
    return top, total, sums


@triton.jit(do_not_specialize=["first"])
def attend_kernel(
    qkv, positions, rows, first, keys, values, cos, sin, q_norm, k_norm, out, parts, eps, scale, capacity,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, P: tl.constexpr, NORMED: tl.constexpr, WINDOW: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One row and key-value head, and one part of its keys; see the top of this file."""
    b, g, split = tl.program_id(0) // G, tl.program_id(0) % G, tl.program_id(1)
    position = tl.load(positions + b).to(tl.int32)
    if rows is None:
        row = (first + b).to(tl.int64)
    else:
        row = tl.load(rows + b).to(tl.int64)
    m, k, one = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K), tl.arange(0, 1)
    heads = (b * H + g * (H // G) + m).to(tl.int64)
    token = qkv + b.to(tl.int64) * ((H + 2 * G) * K)
    angles = tl.where(position < 0, capacity - 1, position) * P
    q = turned(
        token + (g * (H // G) + m) * K, m < H // G, cos + angles, sin + angles, q_norm, eps, K, P, NORMED, BLOCK_K
    )
    key = turned(token + (H + g + one) * K, one < 1, cos + angles, sin + angles, k_norm, eps, K, P, NORMED, BLOCK_K)
    value = tl.load(token + (H + G + g) * K + k, mask=k < K, other=0.0)[None, :]
    q, key, value = q.to(keys.dtype.element_ty), key.to(keys.dtype.element_ty), value.to(keys.dtype.element_ty)
    keys += (row * G + g) * (capacity + 1) * K
    values += (row * G + g) * (capacity + 1) * K
    mine = split == 0
    slot = tl.where(position < 0, capacity, position) * K + k[None, :]
    stored = (k < tl.where(mine, K, 0))[None, :]
    tl.store(keys + slot, key, mask=stored)
    tl.store(values + slot, value, mask=stored)
    begin, stop = 0, tl.maximum(position, 0)
    if WINDOW is not None:
        begin = tl.maximum(position - WINDOW + 1, 0)
    if SPLIT:
        part = tl.cdiv(tl.cdiv(stop - begin, tl.num_programs(1)), BLOCK_N) * BLOCK_N
        begin += split * part
        stop = tl.minimum(stop, begin + part)
    own = tl.sum(q.to(tl.float32) * key.to(tl.float32), 1) * scale
    top = tl.where(mine, own, LOWEST)
    total = tl.zeros([BLOCK_M], tl.float32) + tl.where(mine, 1.0, 0.0)
    sums = tl.where(mine, value.to(tl.float32), 0.0) + tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    top, total, sums = _over_keys(q, keys, values, begin, stop, scale, top, total, sums, K, BLOCK_K, BLOCK_N)
    there = m < H // G
    if SPLIT:
        at = heads * tl.num_programs(1) + split
        tl.store(out + at[:, None] * K + k[None, :], sums, mask=there[:, None] & (k < K)[None, :])
        tl.store(parts + at * 2, top, mask=there)
        tl.store(parts + at * 2 + 1, total, mask=there)
    else:
        seen = (sums / total[:, None]).to(keys.dtype.element_ty).to(out.dtype.element_ty)
        tl.store(out + heads[:, None] * K + k[None, :], seen, mask=there[:, None] & (k < K)[None, :])


@triton.jit
def join_kernel(
    sums, parts, out, S, CACHE: tl.constexpr, K: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr
):
    """One head of one row: its S parts as one, BLOCK_S at a time, rounded to the dtype CACHE first."""
    head, k = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_K)
    top, total = tl.full([], LOWEST, tl.float32), tl.full([], 0.0, tl.float32)
    seen = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, S, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        line = head * S + s
        tops = tl.load(parts + line * 2, mask=s < S, other=LOWEST)
        totals = tl.load(parts + line * 2 + 1, mask=s < S, other=0.0)
        inside = (s < S)[:, None] & (k < K)[None, :]
        part = tl.load(sums + line[:, None] * K + k[None, :], mask=inside, other=0.0)
        higher = tl.maximum(top, tl.max(tops, 0))
        weight, shrink = tl.exp2(tops - higher), tl.exp2(top - higher)
        seen = seen * shrink + tl.sum(part * weight[:, None], 0)
        total = total * shrink + tl.sum(totals * weight, 0)
        top = higher
    tl.store(out + head * K + k, (seen / total).to(CACHE).to(out.dtype.element_ty), mask=k < K)


def join(sums_BHSK: Tensor, parts: Tensor, out: Tensor, cache: torch.dtype, *, warps: int) -> None:
    """Fill in the heads (B, H, K) of their parts: weighted sums, and top score and total weight of each (B, H, S, 2).
    A program of `warps` holds as many parts at once as fit into registers: a long row has hundreds."""
    B, H, S, K = sums_BHSK.shape
    wide = max(16, triton.next_power_of_2(K))
    at_once = min(triton.next_power_of_2(S), max(1, warps * HELD // wide))
    join_kernel[(B * H,)](
        sums_BHSK, parts, out, S, CACHE=TYPES[cache], K=K, BLOCK_S=at_once, BLOCK_K=wide, num_warps=warps
    )


def splits(rows: int, heads: int, limit: int) -> int:
    """Parts that the keys are split into, from what a recorded graph is made for alone."""
    return max(1, min(PROGRAMS // (rows * heads), limit // SPLIT_KEYS))


def block_sizes(K: int, dtype: torch.dtype, programs: int) -> dict[str, int]:
    """Width of a head as a power of two, positions of a step of the loop, and how a program is run: many programs by
    one warp each, which waits for no other; few by more, which are sooner done."""
    wide = max(16, triton.next_power_of_2(K))
    few = programs <= PROGRAMS // 4
    keys = max(16, (8192 if few else 4096) // (wide * dtype.itemsize))
    warps = 4 if few or dtype.itemsize == 4 else 1
    return {"BLOCK_K": wide, "BLOCK_N": min(64, keys), "num_warps": warps, "num_stages": 3 if few else 4}


def attend(
    qkv_BN: Tensor,
    positions_B: Tensor,
    cache: Cache,
    number: int,
    rows_B: Tensor | slice | None,
    joined: JoinedAttention,
) -> Tensor:
    """(B, H K) of the joined products of layer `number`, whose keys and values are stored; see `Cache.place`."""
    attention, (H, G) = joined.attention, joined.heads
    keys, values, (cos, sin) = cache.keys[number], cache.values[number], cache.angles
    B, K = len(qkv_BN), attention.head_dim
    q_norm, k_norm, eps = joined.head_norms()
    S = splits(B, G, cache.capacity if cache.limit is None else cache.limit)
    out = qkv_BN.new_empty(B, H * K)
    sums = qkv_BN.new_empty(B, H, S, K, dtype=torch.float32) if S > 1 else out
    parts = qkv_BN.new_empty(B, H, S, 2, dtype=torch.float32) if S > 1 else None
    blocks = block_sizes(K, keys.dtype, B * G * S)
    attend_kernel[(B * G, S)](
        qkv_BN, positions_B, rows_B if isinstance(rows_B, Tensor) else None,
        rows_B.start if isinstance(rows_B, slice) else 0, keys, values, cos, sin, q_norm, k_norm, sums, parts,
        eps, K**-0.5 * math.log2(math.e), cache.capacity,
        H=H, G=G, K=K, P=cos.shape[-1], NORMED=q_norm is not None, WINDOW=cache.windows[number], SPLIT=S > 1,
        BLOCK_M=max(16, triton.next_power_of_2(H // G)), **blocks,
    )  # fmt: skip
    if parts is not None:
        join(sums, parts, out, keys.dtype, warps=1)
    return out


TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""Dtypes that the kernels take."""
