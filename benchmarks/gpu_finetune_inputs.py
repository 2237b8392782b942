"""What fine-tuning is measured on: conversations of random ids, the same for all sides, in packed rows and alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from benchmarks.conversations import conversations
from benchmarks.gpu_sizes import Sizes
from lifecycle.batch import Example, Pair
from lifecycle.data.stream.packing import Packing, Piece, Row, best_fit
from lifecycle.model import ModelConfig

BATCHES = 4
"""Different micro-batches, which are passed over in turn."""

Said = tuple[list[int], list[int]]
"""Ids of a prompt and of an answer."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """micro: packed batches. parts: of each batch, its conversations (prompt, answer), of pairs both sides in turn."""

    micro: list[Any]
    parts: list[list[Said]]

    @property
    def tokens(self) -> list[int]:
        """Inputs without padding."""
        return [int((micro.packed.document_ids > 0).sum()) for micro in self.micro]

    @property
    def trained(self) -> list[int]:
        """With a label."""
        return [int(micro.packed.trained.sum()) for micro in self.micro]


def made_inputs(sizes: Sizes, shape: ModelConfig, *, pairs: bool) -> Inputs:
    """BATCHES micro-batches of the smallest size; of pairs half as large, whose logits the loop holds twice. A pair
    fills at most a row."""
    rows = sizes.micro[0] // sizes.row // (2 if pairs else 1)
    asked, answered = (max(sizes.row // 128, 2), sizes.row // 16), (sizes.row // 32, int(sizes.row / 2.56))
    ids: Any = np.random.default_rng(0).integers(3, shape.vocab, 1 << 18).astype(np.int32)
    packing = Packing(view="preference" if pairs else "chat")
    # more than fill the rows, of which some are taken: best fit begins with the longest
    wanted = BATCHES * rows * sizes.row // (asked[1] + answered[0] * (2 if pairs else 1)) + BATCHES * rows
    pieces = [
        Piece(_pair(*made) if pairs else _example(*made[:2]), 0)
        for made in conversations(ids, wanted, asked=asked, answered=answered)
    ]
    fitted = best_fit(pieces, sizes.row)
    assert len(fitted) >= BATCHES * rows, "too few conversations to fill the rows"
    packed = [fitted[at] for at in np.random.default_rng(1).permutation(len(fitted))[: BATCHES * rows]]
    micro, parts = [], []
    for at in range(0, len(packed), rows):
        mine: Sequence[Row] = packed[at : at + rows]
        micro.append(packing.batch(torch.from_numpy(packing.arrays(mine, sizes.row)).long()))
        parts.append([side for row in mine for piece in row.pieces for side in _sides(cast(Any, piece.item))])
    return Inputs(micro=micro, parts=parts)


def _example(asked: Any, answer: Any) -> Example:
    ids = np.concatenate([asked, answer])
    return Example(ids=ids, trained=np.arange(len(ids)) >= len(asked))


def _pair(asked: Any, better: Any, worse: Any) -> Pair:
    return Pair(prompt=asked, chosen=_example(asked, better), rejected=_example(asked, worse))


def _sides(item: Example | Pair) -> list[Said]:
    examples = [item.chosen, item.rejected] if isinstance(item, Pair) else [item]
    said = []
    for one in examples:
        assert one.trained is not None
        said.append((one.ids[~one.trained].tolist(), one.ids[one.trained].tolist()))
    return said
