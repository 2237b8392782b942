"""The matrices of a block, joined: queries, keys and values are one product, gate and up another.

Those of experts stay as the model holds them: they are most of it, and kernels read them from there.

Shapes: B rows, D width, H query heads, G key-value heads, K width of a head, F width of the feed-forward part, E
experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifecycle.model import Decoder
from lifecycle.model.decoder import Block, SelfAttention
from lifecycle.model.layers.experts import Experts
from lifecycle.model.layers.latent import LatentAttention
from lifecycle.model.layers.moe import MoEFeedForward
from lifecycle.model.layers.norm_swiglu import FeedForward
from lifecycle.rollout.decoder.packed_linear import linear, refresh_linear


def is_dense(model: Decoder) -> bool:
    """Whether all blocks can be joined: plain attention and no experts."""
    return all(type(block.attention) is SelfAttention and type(block.ffn) is FeedForward for block in blocks(model))


def blocks(model: Decoder) -> list[Block]:
    """The model's blocks."""
    return [block for block in model.blocks if isinstance(block, Block)]


def numbers_to_join(model: Decoder) -> int:
    """How many weights copies of joined matrices may hold: all but those of experts. With an adapter, of the copy that
    is decoded in its place: it holds none beside its weights, and four bits no longer count as half a number."""
    if model.adapter is not None:
        with torch.device("meta"):
            model = Decoder(model.config)
    experts = (p for module in model.modules() if isinstance(module, Experts) for p in module.parameters())
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in experts)


class JoinedMatrices:
    """The products of one block. rows: see `linear`."""

    def __init__(self, block: Block, *, rows: int | None) -> None:
        self.block, attention, ffn = block, block.attention, block.ffn
        self.attention: JoinedAttention | JoinedLatent
        if isinstance(attention, LatentAttention):
            self.attention = JoinedLatent(attention, rows=rows)
        else:
            self.attention = JoinedAttention(attention, rows=rows)
        self.ffn = JoinedFeedForward(ffn, rows=rows) if isinstance(ffn, FeedForward) else JoinedExperts(ffn, rows=rows)

    def refresh(self) -> None:
        """Lay out changed weights."""
        self.attention.refresh()
        self.ffn.refresh()


class JoinedAttention:
    """qkv (B, D) -> (B, (H + 2 G) K) and o (B, H K) -> (B, D). heads: H and G."""

    def __init__(self, attention: SelfAttention, *, rows: int | None) -> None:
        self.attention = attention
        self.qkv = linear([attention.q_proj, attention.k_proj, attention.v_proj], rows)
        self.o = linear([attention.o_proj], rows)
        H, G = (m.weight.shape[0] // attention.head_dim for m in (attention.q_proj, attention.k_proj))
        self.heads = H, G

    def head_norms(self) -> tuple[Tensor | None, Tensor | None, float]:
        """Weights of the norms of queries and keys, None where there are none, and what is added to mean squares."""
        q_norm, k_norm = self.attention.q_norm, self.attention.k_norm
        return (None, None, 0.0) if q_norm is None or k_norm is None else (q_norm.weight, k_norm.weight, q_norm.eps)

    def refresh(self) -> None:
        """Lay out changed weights."""
        refresh_linear(self.qkv, [self.attention.q_proj, self.attention.k_proj, self.attention.v_proj])
        refresh_linear(self.o, [self.attention.o_proj])


class JoinedLatent:
    """The products of latent attention. down (B, D) -> (B, Q + C + P): of queries, or of what these are compressed to,
    and of the compressed vector with the shared key; up (B, q_rank) -> (B, Q), None where queries are not compressed;
    o (B, H V) -> (B, D). What turns compressed vectors into keys and values stays as the model holds it."""

    def __init__(self, attention: LatentAttention, *, rows: int | None) -> None:
        self.attention = attention
        self.down = linear(self._below(), rows)
        self.up = None if attention.sizes.q_rank is None else linear([attention.q_up], rows)
        self.o = linear([attention.o_proj], rows)

    def unfolding(self) -> tuple[Tensor, Tensor]:
        """W_uk (H, N, C) and W_uv (H, V, C)."""
        sizes, up = self.attention.sizes, self.attention.kv_up.weight.detach()
        k_up_HNC, v_up_HVC = up.unflatten(0, (self.attention.heads, -1)).split((sizes.nope_dim, sizes.v_dim), dim=1)
        return k_up_HNC, v_up_HVC

    def refresh(self) -> None:
        """Lay out changed weights."""
        refresh_linear(self.down, self._below())
        refresh_linear(self.o, [self.attention.o_proj])
        if self.up is not None:
            refresh_linear(self.up, [self.attention.q_up])

    def _below(self) -> list[nn.Linear]:
        attention = self.attention
        return [attention.q_proj if attention.sizes.q_rank is None else attention.q_down, attention.kv_down]


class JoinedFeedForward:
    """gate_up (B, D) -> (B, 2 F) and down (B, F) -> (B, D)."""

    def __init__(self, ffn: FeedForward, *, rows: int | None) -> None:
        self.ffn = ffn
        self.gate_up, self.down = linear([ffn.gate_proj, ffn.up_proj], rows), linear([ffn.down_proj], rows)

    def refresh(self) -> None:
        """Lay out changed weights."""
        refresh_linear(self.gate_up, [self.ffn.gate_proj, self.ffn.up_proj])
        refresh_linear(self.down, [self.ffn.down_proj])


class JoinedExperts:
    """router: its weight (E, D) in fp32. shared: the experts that every row visits, None without any."""

    def __init__(self, ffn: MoEFeedForward, *, rows: int | None) -> None:
        self.ffn, self.router = ffn, ffn.router.weight.detach().float()
        self.shared = None if ffn.shared is None else JoinedFeedForward(ffn.shared, rows=rows)

    def refresh(self) -> None:
        """Lay out changed weights, a copy of the router's in place: recorded graphs know the address."""
        weight = self.ffn.router.weight.detach()
        if weight.dtype == torch.float32:
            self.router = weight
        else:
            self.router.copy_(weight)
        if self.shared is not None:
            self.shared.refresh()
