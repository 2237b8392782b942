"""Rotation and gate of a block as operators of torch, each one kernel forward and one backward.

They take the joined products of joined.py and give its gradient whole: a compiler's own kernels for that compute both
halves of a joined gradient everywhere and take twice as long. Compiled code calls them as they are.

Shapes: B sequences, T positions, H query heads, G key-value heads, K width of a head, F width of the feed-forward part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) up (..., F) of the joined product (..., 2 F). Differentiable once."""
    out: Tensor = _gated(gate_up)
    return out


@torch.library.custom_op("lifecycle::gated", mutates_args=())
def _gated(gate_up: Tensor) -> Tensor:
    from lifecycle.model.layers.gpu import gate_kernels

    out = _half(gate_up)
    gate_kernels.forward(gate_up.contiguous(), out)
    return out


@_gated.register_fake
def _(gate_up: Tensor) -> Tensor:
    return _half(gate_up)


@torch.library.custom_op("lifecycle::gated_gradient", mutates_args=())
def _gated_gradient(grad: Tensor, gate_up: Tensor) -> Tensor:
    from lifecycle.model.layers.gpu import gate_kernels

    out = gate_up.new_empty(gate_up.shape)
    gate_kernels.backward(grad.contiguous(), gate_up.contiguous(), out)
    return out


@_gated_gradient.register_fake
def _(grad: Tensor, gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


def _half(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


def _keep_gate(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gate_gradient(ctx: Any, grad: Tensor) -> Tensor:
    out: Tensor = _gated_gradient(grad, *ctx.saved_tensors)
    return out


_gated.register_autograd(_gate_gradient, setup_context=_keep_gate)


def rotated(qkv_BTJ: Tensor, cos_BT1K: Tensor, sin_BT1K: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, H, K) queries and (B, T, G, K) keys, turned by the angles (rope.rotate), and values, of their joined
    product (B, T, (H + 2 G) K). Differentiable once."""
    q, k, v = _rotated(qkv_BTJ, cos_BT1K, sin_BT1K, heads)
    return q, k, v


@torch.library.custom_op("lifecycle::rotated", mutates_args=())
def _rotated(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    from lifecycle.model.layers.gpu import rotary_kernels

    parts = _parts(qkv, cos, heads)
    rotary_kernels.forward(qkv.contiguous(), cos.contiguous(), sin.contiguous(), *parts)
    return parts


@_rotated.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    return _parts(qkv, cos, heads)


@torch.library.custom_op("lifecycle::rotated_gradient", mutates_args=())
def _rotated_gradient(d_q: Tensor, d_k: Tensor, d_v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    from lifecycle.model.layers.gpu import rotary_kernels

    out = _joined(d_q, d_k)
    grads = (d_q.contiguous(), d_k.contiguous(), d_v.contiguous())
    rotary_kernels.backward(out, cos.contiguous(), sin.contiguous(), *grads)
    return out


@_rotated_gradient.register_fake
def _(d_q: Tensor, d_k: Tensor, d_v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _joined(d_q, d_k)


def _parts(qkv: Tensor, cos: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    (B, T, J), K = qkv.shape, cos.shape[-1]
    kv_heads = (J // K - heads) // 2
    return (
        qkv.new_empty((B, T, heads, K)),
        qkv.new_empty((B, T, kv_heads, K)),
        qkv.new_empty((B, T, kv_heads, K)),
    )


def _joined(d_q: Tensor, d_k: Tensor) -> Tensor:
    B, T, H, K = d_q.shape
    return d_q.new_empty((B, T, (H + 2 * d_k.shape[2]) * K))


def _keep_angles(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[1:3])


def _rotary_gradient(ctx: Any, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor, None, None, None]:
    return _rotated_gradient(d_q, d_k, d_v, *ctx.saved_tensors), None, None, None


_rotated.register_autograd(_rotary_gradient, setup_context=_keep_angles)
