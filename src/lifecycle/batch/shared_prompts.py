"""Pairs whose prompt is computed once, for both answers: fewer positions, the same numbers.

    prompt chosen | prompt rejected     ->     prompt chosen rejected

The rejected answer sees the prompt and itself, and its positions go on from the prompt (`TokenBatch.shared`). What is
shared are equal tokens in front of the first position that is trained in either side. That position stands in both:
each label has a position of its own, and experts count the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lifecycle.batch.sequences import PairBatch, Places
from lifecycle.batch.steps import IGNORED, TokenBatch

Array = NDArray[np.int64]

PADDING = {"input_ids": 0, "labels": IGNORED, "position_ids": 0, "document_ids": 0, "source_ids": -1, "shared": 0}

WIDTHS = 64
"""Rows are as wide as a multiple of this: kernels prepare themselves for every shape, which takes time and memory."""


class _Pair(NamedTuple):
    """Where the sides stand in row `row`, and how many tokens in front are shared."""

    row: int
    chosen: slice
    rejected: slice
    shared: int

    @property
    def size(self) -> int:
        """Positions that it takes."""
        return self.rejected.stop - self.chosen.start - self.shared


def with_shared_prompts(batch: PairBatch) -> PairBatch:
    """The pairs of a batch on the CPU in rows of no more positions, and no more rows; `margin`, `at` and `known` keep
    the order of the pairs, whichever row they have come to."""
    given = {name: tensor.numpy() for name, tensor in batch.tokens.tensors().items()}
    pairs = [pair for row in range(len(batch.tokens.labels)) for pair in _pairs(given, row)]
    length = batch.tokens.labels.shape[1]
    rows = first_fit([pair.size for pair in pairs], length)
    used = max((sum(pairs[i].size for i in row) for row in rows), default=1)
    width = min(-(-used // WIDTHS) * WIDTHS, length)
    made = {name: np.full((max(len(rows), 1), width), fill, dtype=np.int64) for name, fill in PADDING.items()}
    for number, row in enumerate(rows):
        at = 0
        for place, i in enumerate(row):
            _write({name: array[number, at:] for name, array in made.items()}, given, pairs[i], place)
            at += pairs[i].size
    tokens = TokenBatch.of({name: torch.from_numpy(array) for name, array in made.items()})
    sides = [2 * i + side for row in rows for i in row for side in (0, 1)]
    return replace(batch, tokens=tokens, at=_in_order(Places.of(tokens), sides))


def first_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of things by row: each goes into the first row of `room` that has so much left."""
    rows: list[list[int]] = []
    left: list[int] = []
    for number, size in enumerate(sizes):
        row = next((row for row, free in enumerate(left) if free >= size), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(number)
        left[row] -= size
    return rows


def _segments(documents: Array) -> list[slice]:
    """The sequences of a row."""
    ends = np.flatnonzero(np.diff(documents, append=0)) + 1
    begins = [0, *ends[:-1]]
    return [slice(int(b), int(e)) for b, e in zip(begins, ends, strict=False) if documents[b]]


def _pairs(given: dict[str, Array], row: int) -> list[_Pair]:
    ids, labels, parts = given["input_ids"][row], given["labels"][row], _segments(given["document_ids"][row])
    out = []
    for chosen, rejected in zip(parts[0::2], parts[1::2], strict=True):
        untrained = min(int(np.argmax(labels[side] != IGNORED)) for side in (chosen, rejected))
        same = ids[chosen][:untrained] == ids[rejected][:untrained]
        out.append(_Pair(row, chosen, rejected, int(np.argmin(np.append(same, False)))))
    return out


def _in_order(at: Places, numbers: Sequence[int]) -> Places:
    """Sequence q of the rows as number `numbers[q]`, and everything in the order of these."""
    number_Q = torch.tensor(numbers, dtype=torch.long, device="cpu")
    sequence_N = number_Q[at.sequence]
    order_N = sequence_N.argsort(stable=True)
    return Places(at.places[order_N], sequence_N[order_N], at.ends[number_Q.argsort()])


def _write(room: dict[str, Array], given: dict[str, Array], pair: _Pair, place: int) -> None:
    """At the beginning of `room`, as pair number `place` of its row."""
    rest = slice(pair.rejected.start + pair.shared, pair.rejected.stop)
    middle = pair.chosen.stop - pair.chosen.start
    for name in set(given) - {"document_ids"}:
        room[name][:middle] = given[name][pair.row, pair.chosen]
        room[name][middle : pair.size] = given[name][pair.row, rest]
    room["document_ids"][:middle], room["document_ids"][middle : pair.size] = 2 * place + 1, 2 * place + 2
    if pair.shared:
        room["shared"][: pair.shared], room["shared"][pair.shared : pair.size] = place + 1, -place - 1
