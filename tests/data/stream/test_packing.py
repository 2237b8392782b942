"""Laws of packing: nothing lost, nothing twice, no label lost at a cut."""

import numpy as np
from tests.items import ids_of

from lifecycle.batch import Example
from lifecycle.data.stream.packing import COLUMNS, Piece, arrays, best_fit, cut


def piece(size: int, start: int = 0, source: int = 0) -> Piece:
    return Piece(Example(ids=np.arange(start, start + size + 1, dtype=np.int32)), source)


def test_hand_worked_best_fit() -> None:
    rows = best_fit([piece(n) for n in (3, 8, 1, 5, 4, 3)], 8)
    assert [[p.positions for p in row.pieces] for row in rows] == [[8], [5, 3], [4, 3, 1]]
    assert [row.free for row in rows] == [0, 0, 0]


def test_every_piece_is_packed_once_and_rows_never_overflow() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 33, 500).tolist()
    pieces = [piece(n, 100 * i) for i, n in enumerate(sizes)]
    rows = best_fit(pieces, 32)
    assert sorted(int(ids_of(p.item)[0]) for row in rows for p in row.pieces) == [100 * i for i in range(500)]
    assert all(sum(p.positions for p in row.pieces) + row.free == 32 and row.free >= 0 for row in rows)
    fewest_possible = max(sum(sizes) / 32, sum(size > 16 for size in sizes))
    assert len(rows) <= 11 / 9 * fewest_possible + 1  # the bound of best-fit decreasing


def test_cutting_keeps_every_label() -> None:
    for size in (1, 7, 8, 9, 16, 17, 40):
        parts = cut(piece(size), 8)
        labels = np.concatenate([ids_of(p.item)[1:] for p in parts])
        inputs = np.concatenate([ids_of(p.item)[:-1] for p in parts])
        assert labels.tolist() == list(range(1, size + 1))
        assert inputs.tolist() == list(range(size))
        assert all(p.positions <= 8 for p in parts)


def test_arrays_mark_documents_positions_sources_and_padding() -> None:
    out = dict(zip(COLUMNS, arrays(best_fit([piece(3, 10, 0), piece(2, 50, 1)], 8), 8), strict=True))
    assert out["input_ids"].tolist() == [[10, 11, 12, 50, 51, 0, 0, 0]]
    assert out["labels"].tolist() == [[11, 12, 13, 51, 52, -100, -100, -100]]
    assert out["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 0]]
    assert out["document_ids"].tolist() == [[1, 1, 1, 2, 2, 0, 0, 0]]
    assert out["source_ids"].tolist() == [[0, 0, 0, 1, 1, -1, -1, -1]]
