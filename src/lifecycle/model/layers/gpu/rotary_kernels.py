"""Queries, keys and values out of their joined product, the first two turned by their angles, and the gradient.

    turned_i = x_i cos_i + x_j sin_i        d x_i = d turned_i cos_i + d turned_j sin_j        j: the other of i's pair

Shapes: N positions, H query heads, G key-value heads, K width of a head; J = (H + 2 G) K.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def forward_kernel(qkv, cos, sin, q, k, v, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """One position."""
    n, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    J: tl.constexpr = (H + 2 * G) * K
    d = c % K
    other = c - d + (d + K // 2) % K
    x = tl.load(qkv + n * J + c, mask=c < J, other=0.0)
    turns = c < (H + G) * K
    pair = tl.load(qkv + n * J + other, mask=turns, other=0.0).to(tl.float32)
    by = tl.load(cos + n * K + d, mask=turns, other=0.0)
    across = tl.load(sin + n * K + d, mask=turns, other=0.0)
    turned = (x.to(tl.float32) * by + pair * across).to(x.dtype)
    tl.store(q + n * (H * K) + c, turned, mask=c < H * K)
    tl.store(k + n * (G * K) + (c - H * K), turned, mask=(c >= H * K) & turns)
    tl.store(v + n * (G * K) + (c - (H + G) * K), x, mask=(c >= (H + G) * K) & (c < J))


@triton.jit
def backward_kernel(
    out, cos, sin, d_q, d_k, d_v, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr
):
    """One position."""
    n, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    J: tl.constexpr = (H + 2 * G) * K
    d = c % K
    far = (d + K // 2) % K
    other = c - d + far
    of_q, turns = c < H * K, c < (H + G) * K
    of_k, of_v = (c >= H * K) & turns, (c >= (H + G) * K) & (c < J)
    own = tl.load(d_q + n * (H * K) + c, mask=of_q, other=0.0).to(tl.float32)
    own += tl.load(d_k + n * (G * K) + (c - H * K), mask=of_k, other=0.0).to(tl.float32)
    pair = tl.load(d_q + n * (H * K) + other, mask=of_q, other=0.0).to(tl.float32)
    pair += tl.load(d_k + n * (G * K) + (other - H * K), mask=of_k, other=0.0).to(tl.float32)
    by = tl.load(cos + n * K + d, mask=turns, other=0.0)
    across = tl.load(sin + n * K + far, mask=turns, other=0.0)
    untouched = tl.load(d_v + n * (G * K) + (c - (H + G) * K), mask=of_v, other=0.0).to(tl.float32)
    tl.store(out + n * J + c, (own * by + pair * across + untouched).to(out.dtype.element_ty), mask=c < J)


def forward(qkv: Tensor, cos: Tensor, sin: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Into q (B, T, H, K), k and v (B, T, G, K); cos and sin (B, T, 1, K) or (1, T, 1, K) fp32; all contiguous."""
    _launch(forward_kernel, qkv, cos, sin, q, k, v)


def backward(out: Tensor, cos: Tensor, sin: Tensor, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> None:
    """Into `out` (B, T, J), the gradient in the joined product."""
    _launch(backward_kernel, out, cos, sin, d_q, d_k, d_v)


def _launch(kernel: triton.JITFunction, joined: Tensor, cos: Tensor, sin: Tensor, *parts: Tensor) -> None:
    B, T, H, K = parts[0].shape
    G, block = parts[1].shape[2], triton.next_power_of_2(joined.shape[-1])
    warps = max(1, min(8, block // 512))
    kernel[(B * T,)](joined, cos, sin, *parts, H=H, G=G, K=K, BLOCK=block, num_warps=warps)
