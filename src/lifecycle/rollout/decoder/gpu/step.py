"""A decode step of a dense model on a GPU: four products a block, and our own kernels between them.

    norm -> qkv -> attention over the cache -> o -> sum, norm -> gate, up -> silu(gate) up -> down -> sum, norm -> ...

Shapes: B rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from lifecycle.model import Cache, Decoder
from lifecycle.rollout.decoder.gpu.attend import TYPES, attend
from lifecycle.rollout.decoder.gpu.norm_gate import add_norm, gated
from lifecycle.rollout.decoder.joined_matrices import JoinedMatrices


class KernelStep:
    """The model's blocks and its last norm. The bits of a row depend on the number of rows, and on no other row."""

    def __init__(self, model: Decoder, blocks: Sequence[JoinedMatrices]) -> None:
        self._model, self._blocks = model, blocks

    def takes(self, cache: Cache) -> bool:
        """Whether the kernels know these dtypes."""
        return self._model.embedding.weight.dtype in TYPES and cache.keys[0].dtype in TYPES

    def __call__(self, x_BD: Tensor, positions_B: Tensor, cache: Cache, rows_B: Tensor | slice | None) -> Tensor:
        """Normed hidden states (B, D) of the embeddings x_BD of tokens at these positions (-1: padding), which are
        written into rows `rows_B` of the cache (see `Cache.place`)."""
        positions_B, added_BD = positions_B.contiguous(), None
        # kernels start on the current device, whatever the tensors' is
        with torch.cuda.device(x_BD.device) if x_BD.is_cuda else nullcontext():
            for number, block in enumerate(self._blocks):
                x_BD, y_BD = add_norm(x_BD, added_BD, block.block.attention_norm)
                seen_BD = attend(block.qkv(y_BD), positions_B, cache, number, rows_B, block)
                x_BD, y_BD = add_norm(x_BD, block.o(seen_BD), block.block.ffn_norm)
                added_BD = block.down(gated(block.gate_up(y_BD)))
            return add_norm(x_BD, added_BD, self._model.norm)[1]
