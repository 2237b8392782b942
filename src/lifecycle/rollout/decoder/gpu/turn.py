"""Queries and keys of many tokens normalised and turned, and keys and values stored in the cache, in one kernel.

Shapes: N tokens, H query heads, G key-value heads, K width of a head, P rotated part of it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lifecycle.model.layers.kv_cache import Slots
from lifecycle.rollout.decoder.gpu.attend import turned
from lifecycle.rollout.decoder.joined_matrices import JoinedAttention


@triton.jit
def turn_kernel(
    qkv, lines, keys, values, cos, sin, q_norm, k_norm, q_out, k_out, eps, H: tl.constexpr, G: tl.constexpr,
    K: tl.constexpr, P: tl.constexpr, NORMED: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One token. lines: of (R G (C + 1), K), see `Cache.place`."""
    token = tl.program_id(0).to(tl.int64)
    h, g, k = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_K)
    row, cos, sin = qkv + token * ((H + 2 * G) * K), cos + token * P, sin + token * P
    q = turned(row + h * K, h < H, cos, sin, q_norm, eps, K, P, NORMED, BLOCK_K)
    tl.store(q_out + (token * H + h)[:, None] * K + k[None, :], q, mask=(h < H)[:, None] & (k < K)[None, :])
    key = turned(row + (H + g) * K, g < G, cos, sin, k_norm, eps, K, P, NORMED, BLOCK_K)
    inside = (g < G)[:, None] & (k < K)[None, :]
    value = tl.load(row + (H + G + g)[:, None] * K + k[None, :], mask=inside, other=0.0)
    tl.store(k_out + (token * G + g)[:, None] * K + k[None, :], key, mask=inside)
    at = tl.load(lines + token * G + g, mask=g < G, other=0)[:, None] * K + k[None, :]
    tl.store(keys + at, key.to(keys.dtype.element_ty), mask=inside)
    tl.store(values + at, value.to(values.dtype.element_ty), mask=inside)


def turn_and_store(qkv: Tensor, slots: Slots, joined: JoinedAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (N, H, K), keys and values (N, G, K) of joined products (N, (H + 2 G) K), in their dtype."""
    attention, (H, G), (cos, sin) = joined.attention, joined.heads, slots.place.angles
    N, K = len(qkv), attention.head_dim
    q_norm, k_norm, eps = joined.head_norms()
    q, k = qkv.new_empty(N, H, K), qkv.new_empty(N, G, K)
    turn_kernel[(N,)](
        qkv, slots.place.slots_M, slots.keys, slots.values, cos, sin, q_norm, k_norm, q, k,
        eps, H=H, G=G, K=K, P=cos.shape[-1], NORMED=q_norm is not None,
        BLOCK_H=triton.next_power_of_2(H), BLOCK_G=triton.next_power_of_2(G), BLOCK_K=triton.next_power_of_2(K),
        num_warps=4,
    )  # fmt: skip
    return q, k, qkv.view(N, -1, K)[:, H + G :]
