"""The small parts of a block: RMS norm, rotary positions, SwiGLU.

Shapes: B rows, T positions, D width, H heads, K width of a head, F width of the feed-forward part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        x32 = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * scale * self.weight).to(x.dtype)


def rotary_angles(position_ids_BT: Tensor, *, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i/K), each (B, T, 1, K) in fp32 (RoFormer, arXiv 2104.09864, eq. 15).

    The K/2 angles stand twice side by side ("rotate half"), as in the Hugging Face models, so that weights map one to
    one. They are derived from the ids, once a forward pass: no table to size, to move, or to fill after a start on
    the meta device.
    """
    exponents = torch.arange(0, head_dim, 2, device=position_ids_BT.device, dtype=torch.float32) / head_dim
    angles = position_ids_BT[..., None].float() * (1.0 / theta**exponents)
    both = torch.cat((angles, angles), dim=-1)[:, :, None, :]
    return both.cos(), both.sin()


def rotate(x_BTHK: Tensor, cos_BT1K: Tensor, sin_BT1K: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + K/2}) by its angle; products in fp32, result in the dtype of x."""
    first, second = x_BTHK.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x_BTHK * cos_BT1K + turned * sin_BT1K).to(x_BTHK.dtype)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x) (arXiv 2002.05202, eq. 6)."""

    def __init__(self, *, width: int, ffn_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, ffn_width, bias=False)
        self.up_proj = nn.Linear(width, ffn_width, bias=False)
        self.down_proj = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out
