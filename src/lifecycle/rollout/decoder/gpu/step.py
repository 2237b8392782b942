"""A model on a GPU without gradients: products of the joined matrices, and our own kernels between them.

    norm -> qkv -> attention over the cache -> o -> sum, norm -> gate, up -> silu(gate) up -> down -> sum, norm -> ...

Experts multiply by kernels of our own (see experts.py); prompts go through latent attention as the model's own. With
one row of a dense model the products are our own too, and hold what lies beside them (see one_row.py).

Shapes: B rows, T positions, N = B T tokens, D width, L blocks with experts, A experts that a row visits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.model import Cache, Decoder
from lifecycle.model.layers.kv_cache import CallSlots
from lifecycle.rollout.decoder.gpu.attend import attend
from lifecycle.rollout.decoder.gpu.attend_latent import attend_latent
from lifecycle.rollout.decoder.gpu.experts import ExpertsOnGPU
from lifecycle.rollout.decoder.gpu.norm_gate import Visits, add_norm, gated
from lifecycle.rollout.decoder.gpu.one_row import product
from lifecycle.rollout.decoder.gpu.turn import turn_and_store
from lifecycle.rollout.decoder.joined_matrices import (
    JoinedAttention,
    JoinedExperts,
    JoinedFeedForward,
    JoinedMatrices,
    is_dense,
)
from lifecycle.rollout.decoder.packed_linear import JoinedLinear

Added = tuple[Tensor | None, Visits | None]
"""What a part adds to the residual stream, see `add_norm`."""


class KernelStep:
    """The model's blocks and its last norm. The bits of a row depend on the number of rows, and on no other row.

    visited: (B, L, A), the experts that the rows of the last call visited; None without experts.
    """

    def __init__(self, model: Decoder, blocks: Sequence[JoinedMatrices]) -> None:
        self._model, self._blocks, self._dense = model, blocks, is_dense(model)
        self._experts = {
            number: ExpertsOnGPU(block.ffn)
            for number, block in enumerate(blocks)
            if isinstance(block.ffn, JoinedExperts)
        }
        self.visited: Tensor | None = None

    def __call__(self, x_BD: Tensor, positions_B: Tensor, cache: Cache, rows_B: Tensor | slice | None) -> Tensor:
        """Normed hidden states (B, D) of the embeddings x_BD of tokens at these positions (-1: padding), which are
        written into rows `rows_B` of the cache (see `Cache.place`)."""
        through = self._one_row if len(x_BD) == 1 and self._dense else self._rows
        with _on_device_of(x_BD):
            return through(x_BD, positions_B.contiguous(), cache, rows_B)

    def _rows(self, x_BD: Tensor, positions_B: Tensor, cache: Cache, rows_B: Tensor | slice | None) -> Tensor:
        def seen_by(y_BD: Tensor, number: int) -> Tensor:
            joined = self._blocks[number].attention
            if isinstance(joined, JoinedAttention):
                return joined.o(attend(joined.qkv(y_BD), positions_B, cache, number, rows_B, joined))
            return joined.o(attend_latent(y_BD, positions_B, cache, number, rows_B, joined))

        x_BD, (added_BD, visits), self.visited = self._through(x_BD, seen_by)
        return add_norm(x_BD, added_BD, self._model.norm, visits)[1]

    def _through(
        self, x_ND: Tensor, seen_by: Callable[[Tensor, int], Tensor | None]
    ) -> tuple[Tensor, Added, Tensor | None]:
        """The residual stream before the last block's part with experts or without is added, that part, and the
        experts visited (N, L, A). seen_by: the attention of a block, which ends all where it is None."""
        visited_NLA, moe = None, self._model.config.moe
        if moe is not None:
            visited_NLA = torch.empty(len(x_ND), len(self._experts), moe.active, dtype=torch.long, device=x_ND.device)
        added: Added = None, None
        for number, block in enumerate(self._blocks):
            x_ND, y_ND = add_norm(x_ND, added[0], block.block.attention_norm, added[1])
            seen_ND = seen_by(y_ND, number)
            if seen_ND is None:
                break
            x_ND, y_ND = add_norm(x_ND, seen_ND, block.block.ffn_norm)
            if isinstance(block.ffn, JoinedFeedForward):
                added = block.ffn.down(gated(block.ffn.gate_up(y_ND))), None
            else:
                assert visited_NLA is not None and moe is not None
                added = self._experts[number](y_ND, visited_NLA[:, number - moe.first_dense])
        return x_ND, added, visited_NLA

    def _one_row(self, x_BD: Tensor, positions_B: Tensor, cache: Cache, rows_B: Tensor | slice | None) -> Tensor:
        for number, block in enumerate(self._blocks):
            attention, ffn = block.attention, block.ffn
            assert isinstance(attention, JoinedAttention) and isinstance(ffn, JoinedFeedForward)
            qkv, o, gate_up, down = (_plain(m) for m in (attention.qkv, attention.o, ffn.gate_up, ffn.down))
            qkv_BN = product(x_BD, qkv, norm=block.block.attention_norm)
            x_BD = product(attend(qkv_BN, positions_B, cache, number, rows_B, attention), o, added=x_BD)
            inner_BF = product(x_BD, gate_up, norm=block.block.ffn_norm, gated=True)
            x_BD = product(inner_BF, down, added=x_BD)
        return add_norm(x_BD, None, self._model.norm)[1]

    def prefill(self, ids_BT: Tensor, positions_BT: Tensor, cache: Cache, rows_B: Tensor | slice | None) -> None:
        """Write the keys and values of these tokens into the cache, as `Decoder.forward` with a cache does."""
        place, last = cache.place(positions_BT, rows_B), len(self._blocks) - 1

        def seen_by(y_ND: Tensor, number: int) -> Tensor | None:
            joined = self._blocks[number].attention
            if isinstance(joined, JoinedAttention):
                seen_ND = _attended(joined.qkv(y_ND), place, number, joined, last=number == last)
                return None if seen_ND is None else joined.o(seen_ND)
            given = y_ND.view(*ids_BT.shape, -1), place.angles
            if number == last:  # its vectors in the cache are all that is wanted
                joined.attention.store(*given, place.layer(number))
                return None
            out_BTD: Tensor = joined.attention(*given, None, place.layer(number))
            return out_BTD.flatten(0, 1)

        x_ND = F.embedding(ids_BT, self._model.embedding.weight).flatten(0, 1)
        with _on_device_of(x_ND):
            self._through(x_ND, seen_by)


def _attended(qkv_NC: Tensor, place: CallSlots, number: int, joined: JoinedAttention, *, last: bool) -> Tensor | None:
    """(N, H K), before the output matrix; None for the last block: its keys and values are all that is wanted."""
    slots = place.layer(number)
    q, k, v = turn_and_store(qkv_NC, slots, joined)
    if last:
        return None
    B, T = place.angles[0].shape[:2]
    seen = slots.look(*(x.to(slots.keys.dtype).unflatten(0, (B, T)) for x in (q, k, v)))
    return seen.reshape(B * T, -1).to(qkv_NC.dtype)


def _plain(matrix: object) -> JoinedLinear:
    assert isinstance(matrix, JoinedLinear)
    return matrix


def _on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Kernels start on the current device, whatever the tensors' is."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
