"""The small parts of a block: RMS norm and SwiGLU.

In training both keep their inputs for the backward pass and compute what lies between once more: it is cheap, and what
autograd keeps of a product of three is two more tensors. On a CPU our own C does it (cpu/block_parts.py). A compiler
chooses for itself.

Shapes: B sequences, T positions, D width, F width of the feed-forward part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifecycle.model.layers.cpu import block_parts
from lifecycle.model.layers.gpu import fused
from lifecycle.model.layers.joined import joined


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467, eq. 4), over the last dimension.

    Computed in fp32 whatever comes in and returned in the dtype of x. Written out, because `F.rms_norm` is slower on
    a CPU, and because what autocast does to it changes with the version of torch.
    """

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            out: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
            return out
        return _normed(x, self.weight, self.eps)[0]


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and (..., 1) what x was multiplied by."""
    if block_parts.takes_norm(x, weight):
        return block_parts.norm(x, weight, eps)
    x32 = _wide(x)
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (x32 * scale * weight).to(x.dtype), scale


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _RMSNorm(torch.autograd.Function):
    """With n = x scale: d weight = sum(g n), d x = scale (g weight - n mean(g n weight))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        if block_parts.takes_norm(x, weight):
            return *block_parts.norm_gradient(grad, x, weight, scale), None
        wide, of_x, of_weight = _wide(grad), None, None
        n = _wide(x) * scale
        product = wide * n
        if ctx.needs_input_grad[1]:
            of_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            mean = (product @ weight.to(product.dtype)).unsqueeze(-1) / x.shape[-1]
            of_x = (wide * weight).sub_(n.mul_(mean)).mul_(scale).to(x.dtype)
        return of_x, of_weight, None


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x) (arXiv 2002.05202, eq. 6)."""

    def __init__(self, *, width: int, ffn_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, ffn_width, bias=False)
        self.up_proj = nn.Linear(width, ffn_width, bias=False)
        self.down_proj = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_up = joined(x_BTD, (self.gate_proj, self.up_proj))
        if gate_up is not None:
            out: Tensor = self.down_proj(fused.gated(gate_up))
            return out
        gate, up = self.gate_proj(x_BTD), self.up_proj(x_BTD)
        inner = F.silu(gate) * up if torch.compiler.is_compiling() else _Gated.apply(gate, up)
        out = self.down_proj(inner)
        return out


class _Gated(torch.autograd.Function):
    """silu(gate) up, and the gradients that autograd would give."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return gated(gate, up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return gated_gradient(grad, *ctx.saved_tensors)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up. Not differentiable."""
    return block_parts.gated(gate, up) if block_parts.takes(gate, up) else F.silu(gate) * up


def gated_gradient(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Of gate and of up, from that of silu(gate) up."""
    if block_parts.takes(grad, gate, up):
        return block_parts.gated_gradient(grad, gate, up)
    return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)
