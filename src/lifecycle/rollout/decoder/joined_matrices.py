"""The matrices of a block with plain attention, joined: queries, keys and values are one product, gate and up another.

Shapes: B rows, D width, H query heads, G key-value heads, K width of a head, F width of the feed-forward part.
"""

from __future__ import annotations

from torch import Tensor

from lifecycle.model import Decoder
from lifecycle.model.decoder import Block, SelfAttention
from lifecycle.model.layers.norm_swiglu import FeedForward
from lifecycle.rollout.decoder.packed_linear import linear


def is_dense(model: Decoder) -> bool:
    """Whether all blocks can be joined: plain attention and no experts."""
    return all(type(block.attention) is SelfAttention and type(block.ffn) is FeedForward for block in blocks(model))


def blocks(model: Decoder) -> list[Block]:
    """The model's blocks."""
    return [block for block in model.blocks if isinstance(block, Block)]


class JoinedMatrices:
    """The products of one block: qkv (B, D) -> (B, (H + 2 G) K), o (B, H K) -> (B, D), gate_up (B, D) -> (B, 2 F), down
    (B, F) -> (B, D). heads: H and G. rows: see `linear`."""

    def __init__(self, block: Block, *, rows: int | None) -> None:
        attention, ffn = block.attention, block.ffn
        assert isinstance(attention, SelfAttention) and isinstance(ffn, FeedForward)
        self.block, self.attention, self.ffn = block, attention, ffn
        self.qkv = linear([attention.q_proj, attention.k_proj, attention.v_proj], rows)
        self.o, self.down = linear([attention.o_proj], rows), linear([ffn.down_proj], rows)
        self.gate_up = linear([ffn.gate_proj, ffn.up_proj], rows)
        H, G = (m.weight.shape[0] // attention.head_dim for m in (attention.q_proj, attention.k_proj))
        self.heads = H, G

    def head_norms(self) -> tuple[Tensor | None, Tensor | None, float]:
        """Weights of the norms of queries and keys, None where there are none, and what is added to mean squares."""
        q_norm, k_norm = self.attention.q_norm, self.attention.k_norm
        return (None, None, 0.0) if q_norm is None or k_norm is None else (q_norm.weight, k_norm.weight, q_norm.eps)

    def refresh(self) -> None:
        """Lay out changed weights."""
        attention, ffn = self.attention, self.ffn
        for product, layers in (
            (self.qkv, [attention.q_proj, attention.k_proj, attention.v_proj]),
            (self.o, [attention.o_proj]),
            (self.gate_up, [ffn.gate_proj, ffn.up_proj]),
            (self.down, [ffn.down_proj]),
        ):
            product.refresh([m.weight for m in layers], [m.bias for m in layers])
