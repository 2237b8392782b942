"""Laws of micro-batches: what a packed forward gives for a side of a pair is what that side gives alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.toy import toy
from torch.nn import functional as F

from lifecycle.batch import Example, Item, MicroBatch, Pair, PairBatch, Prompt, PromptBatch, TokenBatch, UnpairedBatch
from lifecycle.batch.item_arrays import facts, joined, sequences, split, trained_of, weight_of
from lifecycle.batch.prompts import PLACES
from lifecycle.data.stream.packing import Packing, Piece, best_fit
from lifecycle.losses import token_logprobs
from lifecycle.model import DocumentMask, build

MODEL = toy(width=32, heads=2, kv_heads=1, head_dim=16, ffn_width=64, vocab_size=64, init_std=0.05)


def example(rng: np.random.Generator, size: int, asked: int, wanted: bool | None = None) -> Example:
    ids = rng.integers(1, 64, size).astype(np.int32)
    return Example(ids=ids, trained=np.arange(size) >= asked, wanted=wanted)


def pair(rng: np.random.Generator, margin: float | None = None) -> Pair:
    asked = int(rng.integers(2, 5))
    chosen, rejected = (example(rng, asked + int(rng.integers(1, 8)), asked) for _ in range(2))
    rejected.ids[:asked] = chosen.ids[:asked]
    return Pair(prompt=chosen.ids[:asked], chosen=chosen, rejected=rejected, margin=margin)


def packed(view: str, items: list, row_length: int = 32) -> tuple[list, PairBatch]:
    """The micro-batch of items, and the items in its order."""
    packing = Packing(view=view, long_examples="drop")
    rows = best_fit([Piece(item, number % 2) for number, item in enumerate(items)], row_length)
    order = [piece for row in rows for piece in row.pieces]
    batch = packing.batch(torch.from_numpy(packing.arrays(rows, row_length)).long())
    return order, batch  # type: ignore[return-value]


def logprob(one: Example) -> float:
    """Of the trained tokens of one sequence alone."""
    model = build(MODEL, seed=0).double()
    ids = torch.from_numpy(one.ids).long()[None]
    positions = torch.arange(ids.shape[1] - 1)[None]
    logp = F.log_softmax(model.logits(model(ids[:, :-1], positions)), -1)[0].gather(1, ids[0, 1:, None])[:, 0]
    return logp[torch.from_numpy(one.trained[1:])].sum().item()  # type: ignore[index]


def test_one_packed_forward_gives_the_logprobs_of_both_sides_of_every_pair() -> None:
    rng = np.random.default_rng(0)
    order, batch = packed("preference", [pair(rng, margin=n / 4) for n in range(9)])
    model, tokens = build(MODEL, seed=0).double(), batch.tokens
    mask = DocumentMask.from_ids(tokens.document_ids, kernel="sdpa")
    hidden_BTD = model(tokens.input_ids, tokens.position_ids, mask)
    logp_N, _ = token_logprobs(
        hidden_BTD.flatten(0, 1)[batch.places], model.head_weight, tokens.labels.flatten()[batch.places]
    )
    chosen, rejected = batch.sums(logp_N)
    for number, piece in enumerate(order):
        assert chosen[number].item() == pytest.approx(logprob(piece.item.chosen), abs=1e-9)
        assert rejected[number].item() == pytest.approx(logprob(piece.item.rejected), abs=1e-9)
    assert batch.margin.tolist() == [piece.item.margin for piece in order]
    # policy = reference: DPO costs log 2 a pair, packed as alone
    margins = 0.1 * ((chosen - chosen) - (rejected - rejected))
    assert -F.logsigmoid(margins).mean().item() == pytest.approx(math.log(2))


def test_ends_are_the_last_positions_of_the_sides() -> None:
    rng = np.random.default_rng(1)
    order, batch = packed("preference", [pair(rng) for _ in range(5)])
    ids = batch.tokens.input_ids.flatten()
    for side, ends in zip(("chosen", "rejected"), batch.ends, strict=True):
        assert ids[ends].tolist() == [int(getattr(piece.item, side).ids[-2]) for piece in order]
    assert batch.margin.isnan().all()


def test_rows_of_a_batch_are_batches_of_their_pairs_and_add_up_to_it() -> None:
    rng = np.random.default_rng(2)
    _, pairs = packed("preference", [pair(rng, margin=float(n)) for n in range(9)])
    _, single = packed("unpaired", [example(rng, 9, 4, wanted=bool(n % 3)) for n in range(11)])
    for batch in (pairs, single):
        rows = len(batch.tokens.labels)
        assert rows > 2
        parts = [batch.rows(row, row + 1) for row in range(rows)]
        assert sum(len(part) for part in parts) == len(batch)
        for name in ("weight_by_source", "tokens_by_source"):
            assert sum(getattr(part, name)(2) for part in parts).tolist() == getattr(batch, name)(2).tolist()
        values = [torch.rand(len(part.places)) for part in parts]
        sums: Any = [part.sums(v) for part, v in zip([batch, *parts], [torch.cat(values), *values], strict=True)]
        if isinstance(batch, PairBatch):
            assert torch.cat([part.margin for part in parts]).tolist() == batch.margin.tolist()
            assert batch.weight_by_source(2).tolist() == [5, 4]
            sums = [torch.stack(one) for one in sums]
        else:
            assert torch.cat([part.wanted for part in parts]).tolist() == batch.wanted.tolist()
            assert batch.weight_by_source(2).sum() == 11 and batch.wanted.sum() == 7
        torch.testing.assert_close(torch.cat(sums[1:], -1), sums[0])


def test_labels_and_weights_are_where_the_items_say() -> None:
    ids = np.arange(10, 16, dtype=np.int32)
    trained, weight = np.array([0, 0, 1, 0, 1, 1], bool), np.array([1, 1, 2, 1, 0.5, 1], np.float32)
    plain = Example(ids=ids + 20)
    _, batch = packed("chat", [Example(ids=ids, trained=trained, weight=weight), plain], row_length=12)
    tokens: TokenBatch = batch  # type: ignore[assignment]
    assert tokens.input_ids[0].tolist() == [10, 11, 12, 13, 14, 30, 31, 32, 33, 34, 0, 0]
    assert tokens.labels[0].tolist() == [-100, 12, -100, 14, 15, 31, 32, 33, 34, 35, -100, -100]
    assert tokens.position_ids[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0]
    assert tokens.document_ids[0].tolist() == [1] * 5 + [2] * 5 + [0, 0]
    assert tokens.weights is not None and tokens.weights[0, :6].tolist() == [1, 2, 1, 0.5, 1, 1]
    assert tokens.weight_by_source(2).tolist() == [3.5, 5] and tokens.tokens_by_source(2).tolist() == [3, 5]
    _, batch = packed("chat", [plain, Example(ids=ids, trained=trained)])
    assert batch.weights is None  # type: ignore[attr-defined]


def test_prompts_are_numbered_by_step_and_place_whatever_part_of_a_step_holds_them() -> None:
    rows = [(Prompt(id=f"a:{n}", ids=np.arange(n + 2, dtype=np.int32), answer=str(n)), n % 2) for n in range(6)]
    whole = PromptBatch.of(rows, step=3, first=0)
    assert whole.number.tolist() == [3 * PLACES + n for n in range(6)] and whole.source_ids.tolist() == [0, 1] * 3
    later = PromptBatch.of([rows[4], None, rows[5]], step=3, first=4)
    assert later.number.tolist() == [3 * PLACES + 4, 3 * PLACES + 6] and later.id == ["a:4", "a:5"]
    assert whole.rows(1, 3).ids == [[0, 1, 2], [0, 1, 2, 3]] and whole.rows(1, 3).answer == ["1", "2"]
    assert whole.weight_by_source(3).tolist() == [3, 3, 0] and whole.packed is None


def test_items_come_back_from_arrays_as_they_were() -> None:
    rng = np.random.default_rng(3)
    kinds: list[list[Item]] = [
        [Example(ids=np.arange(n + 2, dtype=np.int32)) for n in range(4)],
        [example(rng, 6, 2), Example(ids=np.arange(4, dtype=np.int32), weight=np.full(4, 0.3, np.float32))],
        [pair(rng), pair(rng, margin=0.5)],
        [example(rng, 5, 2, wanted=True), example(rng, 5, 2, wanted=False)],
        [Prompt(id="a:1", ids=np.arange(3, dtype=np.int32), answer=None, meta={"tests": ["x"]})],
        [],
    ]
    for items in kinds:
        state = joined(items, "some")
        again = split(state, "some")
        assert [facts(one) for one in again] == [facts(one) for one in items]
        assert [type(one) for one in again] == [type(one) for one in items]
        for one, other in zip(again, items, strict=True):
            for mine, theirs in zip(sequences(one), sequences(other), strict=True):
                assert np.array_equal(mine.ids, theirs.ids)
                assert np.array_equal(trained_of(mine), trained_of(theirs))
                assert np.array_equal(weight_of(mine), weight_of(theirs))
    assert set(joined(kinds[0], "some")) == {"some_ids", "some_lengths"}


def test_every_batch_is_a_micro_batch() -> None:
    """mypy looks at this."""
    rng = np.random.default_rng(4)
    _, pairs = packed("preference", [pair(rng)])
    batches: list[MicroBatch] = [pairs, pairs.tokens, PromptBatch.of([], step=0, first=0)]
    assert all(batch.to(torch.device("cpu")).weight_by_source(1).shape == (1,) for batch in batches)
    assert UnpairedBatch.of(pairs.tokens, torch.ones(pairs.tokens.labels.shape)).wanted.tolist() == [True, True]
