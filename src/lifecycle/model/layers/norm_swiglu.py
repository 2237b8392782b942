"""The small parts of a block: RMS norm and SwiGLU.

Shapes: B sequences, T positions, D width, F width of the feed-forward part.
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
