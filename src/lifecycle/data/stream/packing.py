"""Items in rows, by best fit, as their view wants it (arXiv 2404.10830).

    text         a document longer than a row is cut, and nothing is dropped
    chat         an example stands in one row; one longer than a row is left out or shortened, and counted;
                 documents among them (a source of `view: text`) are cut
    unpaired     the same
    preference   both sides of a pair stand in one row, so in one micro-batch; a longer pair as in chat
    comparison   the same
    prompt       nothing is packed: a row is one prompt, whose completion has what is left of the row's length

row_length 8, pieces of 8 5 4 3 3 1  ->  [8] [5 3] [4 3 1]

Attention stays inside a sequence, and positions are counted from its beginning.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifecycle.batch import IGNORED, Example, Item, Pair, PairBatch, Prompt, TokenBatch, UnpairedBatch
from lifecycle.batch.item_arrays import PAIRED, sequences

WHOLE = 1 << 62  # a row length that no item reaches

COLUMNS = ("input_ids", "labels", "position_ids", "document_ids", "source_ids")
"""Of packed rows, int32, in every view."""

WEIGHTED = (*COLUMNS, "weights")
"""The bits of float32 weights beside them."""

JUDGED = (*WEIGHTED, "facts")
"""... and of a number for the whole item: the margin of a pair (NaN: unknown), or 1 for a wanted completion."""

LongExamples = Literal["drop", "shorten"]
"""What becomes of an example that is longer than a row: it is left out, or keeps its beginning."""

TrainOn = Literal["assistant", "all"]
"""Which tokens of a conversation are trained: those that the assistant writes, or all of it but the first."""


class Piece(NamedTuple):
    """An item, or a part of a text, its source's index, and whether it was left over."""

    item: Item
    source: int
    carried: bool = False

    @property
    def positions(self) -> int:
        """Positions that the piece takes in a row."""
        return self.item.size


@dataclass
class Row:
    """Pieces that share one row, and the positions that are still free."""

    pieces: list[Piece]
    free: int

    @property
    def carried(self) -> bool:
        """Whether the row holds a piece left over from an earlier window."""
        return any(piece.carried for piece in self.pieces)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the items of `view` become rows. long_examples: of those that are not cut. train_on: of conversations."""

    view: str
    long_examples: LongExamples = "drop"
    train_on: TrainOn = "assistant"

    @cached_property
    def cuts(self) -> bool:
        """Whether every item that is longer than a row goes on in the next one."""
        return self.view == "text"

    @cached_property
    def pads(self) -> bool:
        """Whether rows are filled with whole items, so that no number of rows says how many items they hold."""
        return not self.cuts and not self.counts

    @cached_property
    def judges(self) -> bool:
        """Whether who trains on the items predicts no tokens, and cannot be asked what they ask."""
        return self.view == "comparison"

    def goes_on(self, item: Item) -> bool:
        """Whether the item goes on in the next row where it is longer than one: a document, all of which is trained,
        also among conversations."""
        return self.cuts or (self.view == "chat" and isinstance(item, Example) and is_document(item))

    @cached_property
    def counts(self) -> bool:
        """Whether rows are counted, one for each item, instead of filled."""
        return self.view == "prompt"

    @cached_property
    def has_text(self) -> bool:
        """Whether the trained tokens of an item are one text, whose likelihood has a perplexity and bits per byte."""
        return self.view in ("text", "chat")

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the arrays of packed rows."""
        known = {"text": COLUMNS, "chat": WEIGHTED, "prompt": ()}
        return known.get(self.view, JUDGED)

    def room(self, row_length: int) -> int:
        """What a row holds, in sizes of items."""
        return 1 if self.counts else row_length

    def positions(self, sizes: Sequence[int], row_length: int) -> int:
        """Positions of the rows that items of these sizes fill, with their padding where items stay whole; of prompts,
        their number. The rows of a run are packed window by window, and may be a few more."""
        return len(fitted(sizes, row_length)) * row_length if self.pads else sum(sizes)

    def fit(self, item: Item, row_length: int) -> Item | None:
        """A whole item as it stands in a row: itself, shortened, or None where it is left out."""
        if isinstance(item, Prompt):  # a question that is cut is another one; at least one token has to follow it
            return item if len(item.ids) < row_length else None
        if item.size <= row_length:
            return item
        return shortened(item, row_length, self.train_on) if self.long_examples == "shorten" else None

    def laid(self, piece: Piece, row_length: int) -> list[Piece]:
        """A piece as what it is in rows of this length: parts of a text, a whole item, or nothing."""
        if self.goes_on(piece.item):
            return cut(piece, row_length)
        item = self.fit(piece.item, row_length)
        return [] if item is None else [piece if item is piece.item else piece._replace(item=item)]

    def arrays(self, rows: Sequence[Row], row_length: int) -> NDArray[np.int32]:
        """Packed rows as one (columns, B, T) array; (0, B, 0) where nothing is packed."""
        if self.counts:
            return np.zeros((0, len(rows), 0), np.int32)
        return arrays(rows, row_length, self.columns, train_on=self.train_on)

    def batch(self, rows: Tensor) -> TokenBatch | PairBatch | UnpairedBatch:
        """The micro-batch of packed rows, (columns, B, T) int64."""
        named = dict(zip(self.columns, rows, strict=True))
        weights, facts = named.pop("weights", None), named.pop("facts", None)
        if weights is not None:
            floats = as_floats(weights)
            if bool(((floats != 1) & (named["labels"] != IGNORED)).any()):
                named["weights"] = floats
        tokens = TokenBatch.of(named)
        if facts is None:
            return tokens
        kind = PairBatch if self.view in PAIRED else UnpairedBatch
        return kind.of(tokens, as_floats(facts))


TEXT = Packing(view="text")


def as_floats(bits: Tensor) -> Tensor:
    """float32 from their bits, as integers of any size."""
    return bits.to(torch.int32).view(torch.float32)


def part(example: Example, start: int, length: int) -> Example:
    """Positions [start, start + length) of a sequence, as far as there are any; neighbours share one id, so no label is
    lost at a cut."""
    if not start and example.size <= length:
        return example
    place = slice(start, start + length + 1)
    return Example(
        ids=example.ids[place],
        trained=None if example.trained is None else example.trained[place],
        weight=None if example.weight is None else example.weight[place],
        wanted=example.wanted,
    )


def is_document(example: Example) -> bool:
    """Whether every token is trained, as in no conversation: the first is written by its template."""
    return example.trained is None or bool(example.trained.all())


def shortened(item: Example | Pair, row_length: int, train_on: TrainOn = "assistant") -> Item | None:
    """The beginning of an item that is longer than a row; of a pair, the longer side is cut first. None where a side
    keeps no trained token, or both sides become the same."""
    if isinstance(item, Example):
        short = part(item, 0, row_length)
        return short if train_on == "all" or _is_trained(short) else None
    room = min(item.chosen.size, max(row_length // 2, row_length - item.rejected.size))
    chosen, rejected = part(item.chosen, 0, room), part(item.rejected, 0, row_length - room)
    if not (_is_trained(chosen) and _is_trained(rejected)) or np.array_equal(chosen.ids, rejected.ids):
        return None
    return Pair(prompt=item.prompt, chosen=chosen, rejected=rejected, margin=item.margin)


def _is_trained(example: Example) -> bool:
    """Whether a label of it enters the loss."""
    return example.size > 0 and (example.trained is None or bool(example.trained[1:].any()))


def best_fit(pieces: list[Piece], row_length: int) -> list[Row]:
    """Rows that hold every piece, by best-fit decreasing: each piece, longest first, goes where least room is left.

    Pieces must not be longer than the row. Ties keep the order in which the pieces came, so the result is a function of
    the list alone.
    """
    sizes = [piece.item.size for piece in pieces]
    rows = fitted(sizes, row_length)
    return [Row([pieces[i] for i in row], row_length - sum(sizes[i] for i in row)) for row in rows]


def fitted(sizes: Sequence[int], row_length: int) -> list[list[int]]:
    """The same of sizes alone: rows of their indices."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (free positions, row index), ascending
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = bisect_left(open_rows, (sizes[i], -1))
        if at < len(open_rows):
            free, index = open_rows.pop(at)
        else:
            free, index = row_length, len(rows)
            rows.append([])
        rows[index].append(i)
        if free > sizes[i]:
            insort(open_rows, (free - sizes[i], index))
    return rows


def cut(piece: Piece, row_length: int) -> list[Piece]:
    """A piece of text as parts of at most `row_length` positions."""
    assert isinstance(piece.item, Example)
    if piece.item.size <= row_length:
        return [piece]
    starts = range(0, piece.item.size, row_length)
    return [piece._replace(item=part(piece.item, start, row_length)) for start in starts]


def arrays(
    rows: Sequence[Row], row_length: int, columns: Sequence[str] = COLUMNS, *, train_on: TrainOn = "assistant"
) -> NDArray[np.int32]:
    """Rows as one (columns, B, T) array; padding has label `IGNORED` and source -1."""
    out = np.zeros((len(columns), len(rows), row_length), np.int32)
    input_ids, labels, position_ids, document_ids, source_ids = out[: len(COLUMNS)]
    labels[...] = IGNORED
    source_ids[...] = -1
    beside = {name: out[i].view(np.float32) for i, name in enumerate(columns) if i >= len(COLUMNS)}
    count = np.arange(row_length, dtype=np.int32)
    for b, row in enumerate(rows):
        at = number = 0
        for piece in row.pieces:
            begin = at
            for example in sequences(piece.item):
                number += 1
                ids, end = example.ids, at + len(example.ids) - 1
                input_ids[b, at:end] = ids[:-1]
                labels[b, at:end] = _labels(example, train_on)
                position_ids[b, at:end] = count[: end - at]
                document_ids[b, at:end] = number
                if "weights" in beside:
                    beside["weights"][b, at:end] = 1 if example.weight is None else example.weight[1:]
                at = end
            source_ids[b, begin:at] = piece.source
            if "facts" in beside:
                beside["facts"][b, begin:at] = _fact(piece.item)
    return out


def _labels(example: Example, train_on: TrainOn) -> NDArray[Any]:
    if example.trained is None or train_on == "all":
        return example.ids[1:]
    return np.where(example.trained[1:], example.ids[1:], IGNORED)


def _fact(item: Item) -> float:
    if isinstance(item, Pair):
        return float("nan") if item.margin is None else item.margin
    return float(isinstance(item, Example) and bool(item.wanted))
