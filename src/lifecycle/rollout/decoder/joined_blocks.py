"""A decoder for the next token of a few sequences, with its matrices joined (see joined_matrices.py).

The same numbers as the model's own cached forward pass, up to rounding, in fewer and larger kernels: with few rows,
starting those costs a good part of a step. On a GPU what lies between the products is our own kernels (see gpu/), which
know experts and latent attention, too; without them the model is dense.

Shapes: B rows, D width, V vocabulary, H query heads, G key-value heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.model import Cache, Decoder
from lifecycle.model.layers.kv_cache import CallSlots
from lifecycle.model.layers.norm_swiglu import RMSNorm
from lifecycle.model.layers.rope import rotate
from lifecycle.rollout.decoder.joined_matrices import (
    JoinedAttention,
    JoinedFeedForward,
    JoinedMatrices,
    blocks,
    is_dense,
)
from lifecycle.rollout.decoder.packed_linear import matrix
from lifecycle.rollout.decoder.shared_prefix import SharedPrefix

Prefill = Callable[[Tensor, Tensor, Cache, Tensor | slice | None], None]
"""(ids (B, T), positions (B, T), cache, rows): writes the tokens' keys and values, as a forward pass of the model."""


class Joined:
    """The model's blocks with joined matrices, laid out for `rows` rows (None: not laid out, for a compiler).

    refresh_model: brings the model's own weights up to date first, where it is a cast copy. head: fp32, in place of the
    model's own, which `refresh_model` keeps up to date; its product is not rounded. kernels: by those in gpu/.
    notes_experts: keep `visited`.
    """

    shares_prefix = False

    def __init__(
        self,
        model: Decoder,
        *,
        rows: int | None,
        refresh_model: Callable[[], None] | None,
        head: Tensor | None = None,
        kernels: bool = False,
        notes_experts: bool = False,
    ) -> None:
        assert kernels or is_dense(model)
        self._model, self._refresh_model, self._head_weight = model, refresh_model, head
        self._blocks = [JoinedMatrices(block, rows=rows) for block in blocks(model)]
        self._head = matrix([self._matrix_of_head()], [], rows)
        self._kernels, self._notes_experts = None, notes_experts
        self.visited: Tensor | None = None
        self.prefill: Prefill | None = None
        if kernels:
            from lifecycle.rollout.decoder.gpu.step import KernelStep  # it imports Triton

            self._kernels = KernelStep(model, self._blocks)
            self.prefill = self._kernels.prefill

    def __call__(
        self,
        ids_B1: Tensor,
        positions_B1: Tensor,
        cache: Cache,
        rows_B: Tensor | None,
        shared: SharedPrefix | None = None,
    ) -> Tensor:
        """Logits (B, V), see `DecodeBackend`."""
        model = self._model
        x_BD = F.embedding(ids_B1[:, 0], model.embedding.weight)
        if self._kernels is not None:
            x_BD = self._kernels(x_BD, positions_B1[:, 0], cache, rows_B)
            self.visited = self._kernels.visited if self._notes_experts else None
        else:
            place = cache.place(positions_B1, rows_B)
            for number, block in enumerate(self._blocks):
                x_BD = _through(block, x_BD, place, number)
            x_BD = rms_norm(x_BD, model.norm)
        return model.capped(self._head(x_BD if self._head_weight is None else x_BD.to(self._head_weight.dtype)))

    def refresh(self) -> None:
        """Lay out changed weights."""
        if self._refresh_model is not None:
            self._refresh_model()
        for block in self._blocks:
            block.refresh()
        self._head.refresh([self._matrix_of_head()], [])

    def _matrix_of_head(self) -> Tensor:
        return self._model.head_weight if self._head_weight is None else self._head_weight


def _through(block: JoinedMatrices, x_BD: Tensor, place: CallSlots, number: int) -> Tensor:
    """(B, D) behind block number `number`."""
    attention, ffn = block.attention, block.ffn
    assert isinstance(attention, JoinedAttention) and isinstance(ffn, JoinedFeedForward)
    x_BD = x_BD + attention.o(_attended(attention, rms_norm(x_BD, block.block.attention_norm), place, number))
    gate, up = ffn.gate_up(rms_norm(x_BD, block.block.ffn_norm)).chunk(2, dim=-1)
    return x_BD + ffn.down(F.silu(gate) * up)


def _attended(joined: JoinedAttention, y_BD: Tensor, place: CallSlots, number: int) -> Tensor:
    """(B, H K), before the output matrix."""
    attention, (H, G) = joined.attention, joined.heads
    q_k_v = joined.qkv(y_BD).view(len(y_BD), 1, -1, attention.head_dim)
    if attention.q_norm is None or attention.k_norm is None:
        q, k = rotate(q_k_v[:, :, : H + G], *place.angles).split((H, G), dim=2)
    else:
        q = rotate(rms_norm(q_k_v[:, :, :H], attention.q_norm), *place.angles)
        k = rotate(rms_norm(q_k_v[:, :, H : H + G], attention.k_norm), *place.angles)
    seen = place.layer(number).attend(q, k, q_k_v[:, :, H + G :])
    return seen.reshape(len(y_BD), -1).to(y_BD.dtype)


def rms_norm(x: Tensor, norm: RMSNorm) -> Tensor:
    """The formula of `RMSNorm` in fewer passes over x, for where no gradient is wanted; on CUDA in one kernel, or three
    where the weight is wider than x."""
    if x.device.type == "cuda":
        wide = torch.promote_types(x.dtype, norm.weight.dtype)
        return F.rms_norm(x.to(wide), x.shape[-1:], norm.weight.to(wide), norm.eps).to(x.dtype)
    x32 = x if x.dtype == torch.float64 else x.float()
    length = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
    scale = length.square_().div_(x.shape[-1]).add_(norm.eps).rsqrt_()
    return (x32 * scale).mul_(norm.weight).to(x.dtype)
