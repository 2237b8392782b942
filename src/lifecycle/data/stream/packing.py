"""Chunk, then best-fit: documents longer than a row are cut, and nothing is dropped (arXiv 2404.10830).

row_length 8, pieces of 8 5 4 3 3 1  ->  [8] [5 3] [4 3 1]
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lifecycle.batch import IGNORED

COLUMNS = ("input_ids", "labels", "position_ids", "document_ids", "source_ids")


class Piece(NamedTuple):
    """A slice of a document: n + 1 ids (int32) for n positions, its source's index, whether it was left over."""

    ids: NDArray[np.int32]
    source: int
    carried: bool = False

    @property
    def positions(self) -> int:
        """Positions that the piece takes in a row."""
        return len(self.ids) - 1


@dataclass
class Row:
    """Pieces that share one row, and the positions that are still free."""

    pieces: list[Piece]
    free: int

    @property
    def carried(self) -> bool:
        """Whether the row holds a piece left over from an earlier window."""
        return any(piece.carried for piece in self.pieces)


def best_fit(pieces: list[Piece], row_length: int) -> list[Row]:
    """Rows that hold every piece, by best-fit decreasing: each piece, longest first, goes where least room is left.

    Pieces must not be longer than the row. Ties keep the order in which the pieces came, so the result is a function of
    the list alone.
    """
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i].ids))
    rows: list[Row] = []
    open_rows: list[tuple[int, int]] = []  # (free positions, row index), ascending
    for i in order:
        piece = pieces[i]
        size = len(piece.ids) - 1
        at = bisect_left(open_rows, (size, -1))
        if at < len(open_rows):
            free, index = open_rows.pop(at)
            rows[index].pieces.append(piece)
        else:
            free, index = row_length, len(rows)
            rows.append(Row([piece], row_length))
        rows[index].free = free - size
        if free > size:
            insort(open_rows, (free - size, index))
    return rows


def cut(piece: Piece, row_length: int) -> list[Piece]:
    """The piece as parts of at most `row_length` positions; neighbours share one id, so no label is lost at a cut."""
    ends = range(0, max(piece.positions, 1), row_length)
    return [Piece(piece.ids[a : a + row_length + 1], piece.source, piece.carried) for a in ends]


def arrays(rows: list[Row], row_length: int) -> NDArray[np.int32]:
    """Rows as one (columns, B, T) array in the order of `COLUMNS`; padding has label `IGNORED` and source -1."""
    out = np.zeros((len(COLUMNS), len(rows), row_length), np.int32)
    input_ids, labels, position_ids, document_ids, source_ids = out
    labels[...] = IGNORED
    source_ids[...] = -1
    count = np.arange(row_length, dtype=np.int32)
    for b, row in enumerate(rows):
        at = 0
        for number, piece in enumerate(row.pieces, 1):
            end = at + len(piece.ids) - 1
            input_ids[b, at:end] = piece.ids[:-1]
            labels[b, at:end] = piece.ids[1:]
            position_ids[b, at:end] = count[: end - at]
            document_ids[b, at:end] = number
            source_ids[b, at:end] = piece.source
            at = end
    return out
