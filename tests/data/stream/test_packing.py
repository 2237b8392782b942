"""Laws of packing: nothing lost, nothing twice, no label lost at a cut."""

import numpy as np
from tests.items import ids_of

from lifecycle.batch import Example, Pair, Prompt
from lifecycle.data.stream.packing import COLUMNS, WHOLE, LongExamples, Packing, Piece, arrays, best_fit, cut


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


def test_a_pass_of_whole_items_is_as_long_as_their_rows() -> None:
    sizes = [5, 4, 3, 2]
    assert Packing(view="chat").positions(sizes, 8) == Packing(view="preference").positions(sizes, 8) == 16
    assert Packing(view="text").positions(sizes, 8) == 14  # cut, so that rows are full
    assert Packing(view="chat").positions([], 8) == 0


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


RULES: tuple[LongExamples, ...] = ("drop", "shorten")


def masked(size: int, trained_from: int) -> Example:
    ids = np.arange(size + 1, dtype=np.int32)
    return Example(ids=ids, trained=ids >= trained_from)


def test_a_long_example_keeps_its_beginning_if_a_trained_token_is_left() -> None:
    rule = {name: Packing(view="chat", long_examples=name) for name in RULES}
    fits, long, hopeless = masked(8, 3), masked(20, 8), masked(20, 9)
    for packing in rule.values():
        assert packing.fit(fits, 8) is fits and packing.fit(hopeless, 8) is None
    assert rule["drop"].fit(long, 8) is None
    short = rule["shorten"].fit(long, 8)
    assert isinstance(short, Example) and short.trained is not None
    assert short.ids.tolist() == list(range(9)) and short.trained.tolist() == [False] * 8 + [True]


def test_of_a_long_pair_the_longer_side_gives_way_first() -> None:
    packing = Packing(view="preference", long_examples="shorten")

    def sizes(chosen: int, rejected: int, room: int, asked: int = 2) -> tuple[int, int] | None:
        sides = [masked(chosen, asked), masked(rejected, asked)]
        sides[1].ids[-1] = 99
        one = packing.fit(Pair(prompt=sides[0].ids[:asked], chosen=sides[0], rejected=sides[1]), room)
        assert one is None or (isinstance(one, Pair) and one.size <= room)
        return (one.chosen.size, one.rejected.size) if isinstance(one, Pair) else None

    assert sizes(4, 6, 10) == (4, 6)
    assert sizes(4, 9, 10) == (4, 6)
    assert sizes(9, 4, 10) == (6, 4)
    assert sizes(9, 7, 10) is None  # what is left of both sides is the same
    assert sizes(9, 4, 10, asked=7) is None  # what is left of a side is its prompt
    long = Pair(prompt=masked(2, 0).ids, chosen=masked(9, 2), rejected=masked(9, 2))
    assert Packing(view="preference").fit(long, 10) is None


def test_a_prompt_is_left_out_where_no_token_could_follow_it() -> None:
    for rule in RULES:
        packing = Packing(view="prompt", long_examples=rule)
        prompt = Prompt(id="a:1", ids=np.arange(8, dtype=np.int32))
        assert [packing.fit(prompt, length) for length in (9, 8, WHOLE)] == [prompt, None, prompt]
