"""A dense model on a GPU without gradients: four products a block, and our own kernels between them.

    norm -> qkv -> attention over the cache -> o -> sum, norm -> gate, up -> silu(gate) up -> down -> sum, norm -> ...

With one row the products are our own too, and hold what lies beside them (see one_row.py).

Shapes: B rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.model import Cache, Decoder
from lifecycle.model.layers.kv_cache import CallSlots
from lifecycle.rollout.decoder.gpu.attend import attend
from lifecycle.rollout.decoder.gpu.norm_gate import add_norm, gated
from lifecycle.rollout.decoder.gpu.one_row import product
from lifecycle.rollout.decoder.gpu.turn import turn_and_store
from lifecycle.rollout.decoder.joined_matrices import JoinedMatrices
from lifecycle.rollout.decoder.packed_linear import JoinedLinear


class KernelStep:
    """The model's blocks and its last norm. The bits of a row depend on the number of rows, and on no other row."""

    def __init__(self, model: Decoder, blocks: Sequence[JoinedMatrices]) -> None:
        self._model, self._blocks = model, blocks

    def __call__(self, x_BD: Tensor, positions_B: Tensor, cache: Cache, rows_B: Tensor | slice | None) -> Tensor:
        """Normed hidden states (B, D) of the embeddings x_BD of tokens at these positions (-1: padding), which are
        written into rows `rows_B` of the cache (see `Cache.place`)."""
        through = self._one_row if len(x_BD) == 1 else self._rows
        with _on_device_of(x_BD):
            return through(x_BD, positions_B.contiguous(), cache, rows_B)

    def _rows(self, x_BD: Tensor, positions_B: Tensor, cache: Cache, rows_B: Tensor | slice | None) -> Tensor:
        added_BD = None
        for number, block in enumerate(self._blocks):
            x_BD, y_BD = add_norm(x_BD, added_BD, block.block.attention_norm)
            seen_BD = attend(block.qkv(y_BD), positions_B, cache, number, rows_B, block)
            x_BD, y_BD = add_norm(x_BD, block.o(seen_BD), block.block.ffn_norm)
            added_BD = block.down(gated(block.gate_up(y_BD)))
        return add_norm(x_BD, added_BD, self._model.norm)[1]

    def _one_row(self, x_BD: Tensor, positions_B: Tensor, cache: Cache, rows_B: Tensor | slice | None) -> Tensor:
        for number, block in enumerate(self._blocks):
            qkv, o, gate_up, down = (_plain(m) for m in (block.qkv, block.o, block.gate_up, block.down))
            qkv_BN = product(x_BD, qkv, norm=block.block.attention_norm)
            x_BD = product(attend(qkv_BN, positions_B, cache, number, rows_B, block), o, added=x_BD)
            inner_BF = product(x_BD, gate_up, norm=block.block.ffn_norm, gated=True)
            x_BD = product(inner_BF, down, added=x_BD)
        return add_norm(x_BD, None, self._model.norm)[1]

    def prefill(self, ids_BT: Tensor, positions_BT: Tensor, cache: Cache, rows_B: Tensor | slice | None) -> None:
        """Write the keys and values of these tokens into the cache, as `Decoder.forward` with a cache does."""
        place, added_ND = cache.place(positions_BT, rows_B), None
        x_ND = F.embedding(ids_BT, self._model.embedding.weight).flatten(0, 1)
        with _on_device_of(x_ND):
            for number, block in enumerate(self._blocks):
                x_ND, y_ND = add_norm(x_ND, added_ND, block.block.attention_norm)
                seen_ND = _attended(block.qkv(y_ND), place, number, block, last=number + 1 == len(self._blocks))
                if seen_ND is None:
                    return
                x_ND, y_ND = add_norm(x_ND, block.o(seen_ND), block.block.ffn_norm)
                added_ND = block.down(gated(block.gate_up(y_ND)))


def _attended(qkv_NC: Tensor, place: CallSlots, number: int, block: JoinedMatrices, *, last: bool) -> Tensor | None:
    """(N, H K), before the output matrix; None for the last block: its keys and values are all that is wanted."""
    slots = place.layer(number)
    q, k, v = turn_and_store(qkv_NC, slots, block)
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
