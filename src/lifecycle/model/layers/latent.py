"""Multi-head latent attention (arXiv 2405.04434, section 2.1): a token's keys and values come from one small vector.

    c = norm(W_dkv x)          k_h = [W_uk,h c ; rope(W_kr x)]          v_h = W_uv,h c
    q_h = [W_uq,h c_q ; rope(W_qr,h c_q)]     with c_q = norm(W_dq x), or x itself where queries are not compressed

Decoding keeps c and the shared rotated key only. A few queries never unfold them: with W_uk moved to the query,
q' W_uk c = (W_uk' q)' c, all heads attend to the same c, and W_uv comes after the weighted sum.

Shapes: B sequences, T positions, D width, H heads, K width of a head's query, L positions of a cache, C width of c.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifecycle.model.config import ModelConfig
from lifecycle.model.layers.attention import DocumentMask, attention, cached_attention
from lifecycle.model.layers.gpu import fp8
from lifecycle.model.layers.kv_cache import Slots
from lifecycle.model.layers.norm_swiglu import RMSNorm
from lifecycle.model.layers.rope import rotate, softmax_scale

INNER_EPS = 1e-6
"""Of the norms of the compressed vectors; the architectures of this kind do not take the model's own."""

FEW_QUERIES = 16
"""Up to so many new tokens a row the compressed form is the cheaper one: it reads less and computes more."""


class LatentAttention(nn.Module):
    """Attention over compressed keys and values; queries compressed too if `q_rank` is given."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        latent = config.latent
        assert latent is not None
        self.sizes, self.heads, self.scale = latent, config.heads, softmax_scale(config)
        query = config.attention_width
        if latent.q_rank is None:
            self.q_proj = nn.Linear(config.width, query, bias=False)
        else:
            self.q_down = nn.Linear(config.width, latent.q_rank, bias=False)
            self.q_norm = RMSNorm(latent.q_rank, eps=INNER_EPS)
            self.q_up = nn.Linear(latent.q_rank, query, bias=False)
        self.kv_down = nn.Linear(config.width, latent.kv_rank + latent.rope_dim, bias=False)
        self.kv_norm = RMSNorm(latent.kv_rank, eps=INNER_EPS)
        self.kv_up = nn.Linear(latent.kv_rank, config.heads * (latent.nope_dim + latent.v_dim), bias=False)
        self.o_proj = nn.Linear(config.heads * latent.v_dim, config.width, bias=False)

    def forward(
        self, x_BTD: Tensor, angles: tuple[Tensor, Tensor], documents: DocumentMask | None, slots: Slots | None = None
    ) -> Tensor:
        """(B, T, D); with `slots`, over the content of the cache, after the call's tokens are written to it."""
        sizes = self.sizes
        q_BTHK = self._queries(x_BTD).unflatten(-1, (self.heads, -1))
        q_nope, q_rope = q_BTHK.split((sizes.nope_dim, sizes.rope_dim), dim=-1)
        q_rope = rotate(q_rope, *angles)
        if slots is None:
            k, v = self._unfold(*self._vectors(x_BTD, angles))
            out = self._attend(torch.cat((q_nope, q_rope), dim=-1), k, v, documents)
        else:
            held_B1LJ = self.store(x_BTD, angles, slots).to(x_BTD.dtype)
            plain = fp8.is_plain(self.kv_up)  # an adapter beside it is no part of its weight
            if slots.mask_B1TL is None:
                out = self._begun(q_nope, q_rope, held_B1LJ, slots.documents)
            else:
                cached = self._compressed if plain and q_BTHK.shape[1] <= FEW_QUERIES else self._unfolded
                out = cached(q_nope, q_rope, held_B1LJ, slots.mask_B1TL)
        result: Tensor = self.o_proj(out.flatten(2))
        return result

    def store(self, x_BTD: Tensor, angles: tuple[Tensor, Tensor], slots: Slots) -> Tensor:
        """Write the call's tokens to the cache; (B, 1, L, J), all that its rows hold then: c and the shared key."""
        c_BTC, k_rope_BT1P = self._vectors(x_BTD, angles)
        return slots.write_latent(torch.cat((c_BTC[:, :, None], k_rope_BT1P), dim=-1))

    def _vectors(self, x_BTD: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """c, and the shared key."""
        c_BTC, k_rope = self.kv_down(x_BTD).split((self.sizes.kv_rank, self.sizes.rope_dim), dim=-1)
        return self.kv_norm(c_BTC), rotate(k_rope[:, :, None], *angles)

    def _queries(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.q_proj(x_BTD) if self.sizes.q_rank is None else self.q_up(self.q_norm(self.q_down(x_BTD)))
        return out

    def _unfold(self, c_BLC: Tensor, k_rope_BL1P: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, L, H, K) and values (B, L, H, v_dim) of compressed vectors."""
        both = self.kv_up(c_BLC).unflatten(-1, (self.heads, -1))
        k_nope, v = both.split((self.sizes.nope_dim, self.sizes.v_dim), dim=-1)
        return torch.cat((k_nope, k_rope_BL1P.to(k_nope.dtype).expand(-1, -1, self.heads, -1)), dim=-1), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, documents: DocumentMask | None) -> Tensor:
        """The kernels take one width for keys and values: the narrower are padded with zeros, which change nothing."""
        widest, width = max(k.shape[-1], v.shape[-1]), v.shape[-1]
        q, k, v = (F.pad(x, (0, widest - x.shape[-1])) if x.shape[-1] < widest else x for x in (q, k, v))
        return attention(q, k, v, documents, scale=self.scale)[..., :width]

    def _begun(self, q_nope: Tensor, q_rope: Tensor, held_B1LJ: Tensor, documents: DocumentMask | None) -> Tensor:
        """Of rows that begin with the call, which are all that the cache has to show."""
        k, v = self._unfold_held(held_B1LJ)
        return self._attend(torch.cat((q_nope, q_rope), dim=-1), k, v, documents)

    def _unfold_held(self, held_B1LJ: Tensor) -> tuple[Tensor, Tensor]:
        c_BLC, k_rope_BLP = held_B1LJ[:, 0].split((self.sizes.kv_rank, self.sizes.rope_dim), dim=-1)
        return self._unfold(c_BLC, k_rope_BLP[:, :, None])

    def _compressed(self, q_nope: Tensor, q_rope: Tensor, held_B1LJ: Tensor, mask_B1TL: Tensor) -> Tensor:
        """Every head looks at the compressed vectors themselves: one key head, whose first C numbers are the value."""
        up_HXC = self.kv_up.weight.to(q_nope.dtype).unflatten(0, (self.heads, -1))
        k_up, v_up = up_HXC.split((self.sizes.nope_dim, self.sizes.v_dim), dim=1)
        q_BTHC = torch.einsum("bthn,hnc->bthc", q_nope, k_up)
        q_BTHJ = torch.cat((q_BTHC, q_rope.to(q_BTHC.dtype)), dim=-1)
        seen = cached_attention(q_BTHJ, held_B1LJ, held_B1LJ, mask_B1TL, scale=self.scale)
        return torch.einsum("bthc,hvc->bthv", seen[..., : self.sizes.kv_rank], v_up)

    def _unfolded(self, q_nope: Tensor, q_rope: Tensor, held_B1LJ: Tensor, mask_B1TL: Tensor) -> Tensor:
        """For many queries at once: unfold what the cache holds, then plain attention."""
        k, v = self._unfold_held(held_B1LJ)
        q, width = torch.cat((q_nope, q_rope), dim=-1), v.shape[-1]
        widest = max(k.shape[-1], width)
        q, k, v = (F.pad(x, (0, widest - x.shape[-1])) if x.shape[-1] < widest else x for x in (q, k, v))
        return cached_attention(q, k.transpose(1, 2), v.transpose(1, 2), mask_B1TL, scale=self.scale)[..., :width]
