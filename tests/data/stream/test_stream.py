"""Laws of a logical stream: exact mixing, nothing lost, and resume at any step gives the same rows."""

import pickle
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lifecycle.batch import Example, Item, Pair, Prompt
from lifecycle.batch.item_arrays import facts, sequences, trained_of, weight_of
from lifecycle.data.mixture.batch_plan import BatchPlan, Mix, Phase, fixed
from lifecycle.data.mixture.weight import Weight
from lifecycle.data.stream.loading.cursors import with_tensors
from lifecycle.data.stream.packing import TEXT, LongExamples, Packing
from lifecycle.data.stream.pieces import Exhausted, Pieces, State
from lifecycle.data.stream.stream import Stream
from lifecycle.errors import UserError


def item(view: str, number: int, size: int) -> Item:
    """An item of about `size` ids that count upwards from 1000 times its number, of which the last half is trained."""
    ids = (np.arange(size) + 1000 * number).astype(np.int32)
    trained = np.arange(size) >= size // 2
    if view == "text":
        return Example(ids=ids)
    if view == "preference":
        worse = Example(ids=np.append(ids[: size // 2 + 1], -1).astype(np.int32), trained=trained[-(size // 2 + 2) :])
        return Pair(prompt=ids[:1], chosen=Example(ids=ids, trained=trained), rejected=worse, margin=number / 2)
    if view == "prompt":
        return Prompt(id=f"a:{number}", ids=ids, answer=str(number), meta={"number": number})
    weight = (trained * np.float32(0.5)).astype(np.float32) if number % 3 else None
    return Example(ids=ids, trained=trained, weight=weight, wanted=number % 2 == 0 if view == "unpaired" else None)


class Counting:
    """Documents of deterministic random lengths whose ids count upwards, so that every token is recognised."""

    def __init__(
        self, name: str, longest: int, state: State | None = None, limit: float | None = None, view: str = "text"
    ) -> None:
        self.name, self.longest, self.max_epochs, self.view = name, longest, limit, view
        self.number = state["number"] if state else 0

    def next(self) -> Item:
        if self.max_epochs is not None and self.number >= self.max_epochs:
            raise Exhausted(self.name)
        size = int(np.random.default_rng((len(self.name), self.number)).integers(2, self.longest))
        self.number += 1
        return item(self.view, self.number, size)

    def state(self) -> State:
        return {"number": self.number}

    def totals(self) -> State:
        return {"epochs": 0.0, "counts": {}}


LENGTHS = {"a": 60, "bb": 15, "ccc": 200}
WEIGHTS = {"a": 0.5, "bb": 0.3, "ccc": 0.2}


def stream(
    plan: BatchPlan,
    state: State | None = None,
    limit: float | None = None,
    dropping: bool = False,
    window_rows: int = 8,
    packing: Packing = TEXT,
) -> Stream:
    at = state["anchor"]["sources"] if state else {}
    pieces = {
        name: Pieces(
            Counting(
                name, longest, at[name]["documents"] if at else None, limit if name == "ccc" else None, packing.view
            ),
            i,
            at[name] if at else None,
            packing=packing,
        )
        for i, (name, longest) in enumerate(LENGTHS.items())
    }
    return Stream(
        index=0,
        streams=2,
        sources=pieces,
        plan=plan,
        seed=1,
        window_rows=window_rows,
        dropping=["ccc"] if dropping else [],
        state=state,
    )


def flat(rows: Any) -> list[tuple[int, ...]]:
    """The pieces of rows by source and ids."""
    return [(p.source, *(int(i) for part in sequences(p.item) for i in part.ids)) for row in rows for p in row.pieces]


def everything(rows: Any) -> list[str]:
    """The pieces of rows by all that they are; no weights are weights of 1."""
    pieces = [piece for row in rows for piece in row.pieces]
    parts = [[(part.ids, trained_of(part), weight_of(part)) for part in sequences(p.item)] for p in pieces]
    plain = [[[array.tolist() for array in part] for part in one] for one in parts]
    return [repr((p.source, facts(p.item), arrays)) for p, arrays in zip(pieces, plain, strict=True)]


CONSTANT = fixed(WEIGHTS, row_length=32, rows=4)
CHANGING = BatchPlan(
    (
        Phase(step=0, row_length=16, rows=8),
        Phase(step=5, row_length=64, rows=4, weights={"a": 0.1, "bb": 0.1, "ccc": 0.8}),
        Phase(step=9, row_length=32, rows=2),
    ),
    CONSTANT.mix,
)
MOVING = BatchPlan(
    CONSTANT.phases,
    Mix(
        weights={
            "a": Weight(start=1.0, end=0.0),
            "bb": Weight(start=0.0, end=1.0, shape="cosine"),
            "ccc": Weight(table={0: 0.5, 0.5: 0.1}),
        },
        total=14,
    ),
)


RULES: tuple[LongExamples, ...] = ("drop", "shorten")
PACKINGS = [TEXT, *(Packing(view=v, long_examples=rule) for v in ("chat", "preference", "unpaired") for rule in RULES)]
PACKINGS.append(Packing(view="prompt"))


@pytest.fixture(params=PACKINGS, ids=lambda packing: f"{packing.view}-{packing.long_examples}")
def packing(request: pytest.FixtureRequest) -> Packing:
    chosen: Packing = request.param
    return chosen


def saved(state: State) -> State:
    """As a checkpoint gives it back."""
    again: State = pickle.loads(pickle.dumps(with_tensors(state)))
    return again


@pytest.mark.parametrize("plan", [CONSTANT, CHANGING, MOVING])
def test_resume_after_any_step_gives_the_rows_that_would_have_been(plan: BatchPlan, packing: Packing) -> None:
    whole = stream(plan, packing=packing)
    expected, states = [], []
    for step in range(14):
        rows, state = whole.step(step)
        expected.append(everything(rows))
        states.append(saved(state))
    for stop in range(13):
        resumed = stream(plan, states[stop], packing=packing)
        assert [everything(resumed.step(step)[0]) for step in range(stop + 1, 14)] == expected[stop + 1 :]
        assert resumed.state()["totals"] == whole.state()["totals"]


@pytest.mark.parametrize("plan", [CONSTANT, CHANGING])
def test_an_item_that_is_not_cut_is_given_once_in_one_row_or_counted(plan: BatchPlan, packing: Packing) -> None:
    one, seen = stream(plan, packing=packing), Counter[tuple[int, int]]()
    if packing.cuts:
        return
    for step in range(40):
        rows, _ = one.step(step)
        length = plan.at(step).row_length
        for row in rows:
            assert sum(p.positions for p in row.pieces) + row.free == packing.room(length)
            assert all(packing.fit(p.item, length) is p.item for p in row.pieces)
            seen.update((p.source, int(sequences(p.item)[0].ids[0]) // 1000) for p in row.pieces)
    waiting = [p for row in one._window[one._given :] for p in row.pieces] + one.carry
    seen.update((p.source, int(sequences(p.item)[0].ids[0]) // 1000) for p in waiting)
    assert set(seen.values()) == {1}
    for index, pieces in enumerate(one.sources.values()):
        drawn, documents = sum(source == index for source, _ in seen), pieces.documents
        assert isinstance(documents, Counting)
        begun = pieces._item is not None
        assert drawn + pieces.too_long["dropped"] == documents.number - begun


@pytest.mark.parametrize("plan", [CONSTANT, CHANGING, MOVING])
def test_every_token_is_given_once_and_in_rows_of_the_steps_length(plan: BatchPlan) -> None:
    one = stream(plan)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in range(40):
        rows, _ = one.step(step)
        phase = plan.at(step)
        assert len(rows) == phase.rows // 2
        for row in rows:
            assert sum(p.positions for p in row.pieces) + row.free == phase.row_length
            for p in row.pieces:
                assert isinstance(p.item, Example)
                seen[p.source] += p.item.ids[1:].tolist()
    for labels in seen.values():
        assert len(labels) == len(set(labels))


def test_mixture_error_is_under_one_piece() -> None:
    one = stream(CONSTANT)
    for step in range(400):
        one.step(step)
    fed = {
        name: one.seen[name] + sum(p.positions for p in one.carry if p.source == i) for i, name in enumerate(LENGTHS)
    }
    fed = {
        n: fed[n] + sum(p.positions for r in one._window[one._given :] for p in r.pieces if p.source == i)
        for i, n in enumerate(LENGTHS)
    }
    total = sum(fed.values())
    for name, weight in WEIGHTS.items():
        assert abs(fed[name] - weight * total) <= 32


def test_streams_together_give_a_source_of_small_weight_its_share_within_about_a_piece() -> None:
    class Equal(Counting):
        def next(self) -> Item:
            self.number += 1
            return Example(ids=np.arange(self.longest, dtype=np.int32))

    streams, weights = 16, {"a": 1.0, "bb": 0.001, "ccc": 0.02}
    plan = fixed(weights, row_length=128, rows=streams)
    together = [
        Stream(
            index=index,
            streams=streams,
            sources={name: Pieces(Equal(name, 100), i) for i, name in enumerate(weights)},
            plan=plan,
            seed=1,
            window_rows=1,
        )
        for index in range(streams)
    ]
    for step in range(400):
        for one in together:
            one.step(step)
        total = sum(sum(one.taken.values()) for one in together)
        for name in ("bb", "ccc"):
            taken = sum(one.taken[name] for one in together)
            assert abs(taken - total * weights[name] / sum(weights.values())) <= 3 * 99, (name, step)


def test_padding_is_small() -> None:
    one = stream(CONSTANT, window_rows=64)
    for step in range(320):
        one.step(step)
    assert one.padding / (320 * 2 * 32) < 0.01


def test_an_exhausted_source_ends_the_stream_only_after_its_whole_steps() -> None:
    one = stream(CONSTANT, limit=3)
    given = 0
    with pytest.raises(Exhausted, match="ccc"):
        for step in range(1000):
            one.step(step)
            given += 1
    assert given > 5


def test_dropping_goes_on_without_the_exhausted_source_and_resumes() -> None:
    one = stream(CONSTANT, limit=2, dropping=True)
    rows, states = [], []
    for step in range(60):
        r, s = one.step(step)
        rows.append(flat(r))
        states.append(s)
    assert one.gone == ["ccc"]
    again = stream(CONSTANT, states[30], limit=2, dropping=True)
    assert [flat(again.step(step)[0]) for step in range(31, 60)] == rows[31:]


def test_streams_must_divide_rows_and_ranks_must_divide_streams() -> None:
    plan = fixed(WEIGHTS, row_length=8, rows=24)
    assert plan.streams(None, 1) == 12
    assert plan.streams(6, 2) == 6
    with pytest.raises(UserError, match="must divide the rows"):
        plan.streams(5, 1)
    with pytest.raises(UserError, match="cannot be shared out"):
        plan.streams(None, 5)


REPLAYED = BatchPlan(CONSTANT.phases, replace(CONSTANT.mix, replay=frozenset({"bb"}), shares=((0, 0.1),)))


def changed(step: int, share: float, plan: BatchPlan = REPLAYED) -> BatchPlan:
    return BatchPlan(plan.phases, plan.mix.changed(step, share))


def run(parts: list[tuple[int, BatchPlan]], stop: int, **options: Any) -> tuple[list[Any], list[State], Stream]:
    """Rows and states of the steps up to `stop`, of streams that begin again with another plan at some steps."""
    rows: list[Any] = []
    states: list[State] = []
    begins = [begin for begin, _ in parts] + [stop]
    for (begin, plan), end in zip(parts, begins[1:], strict=True):
        one = stream(plan, states[-1] if begin else None, **options)
        for step in range(begin, end):
            given, state = one.step(step)
            rows.append(flat(given))
            states.append(state)
    return rows, states, one


@pytest.mark.parametrize("binds", [3, 7])
def test_a_change_decided_late_binds_at_its_step_in_every_view(binds: int, packing: Packing) -> None:
    options: dict[str, Any] = {"window_rows": 40, "packing": packing}
    before, _, _ = run([(0, REPLAYED)], 60, **options)
    late = changed(binds, 0.6)
    rows, _, last = run([(0, REPLAYED), (binds, late)], 60, **options)
    assert rows[:binds] == before[:binds] and rows[binds:] != before[binds:]
    assert packing.counts or rows[binds] != before[binds]  # few prompts may be the same ones under both shares
    names = Counter(piece for step in rows for piece in step)
    assert max(names.values()) == 1
    fed = dict.fromkeys(range(3), 0)
    for step in rows[binds:]:
        for piece in step:
            fed[piece[0]] += 1 if packing.counts else len(piece) - (3 if packing.view == "preference" else 2)
    assert abs(fed[1] / sum(fed.values()) - 0.6) < 0.05 and abs(sum(last.credit.values())) < 1e-6
    for stop in range(binds, 59, 11):
        again, _, _ = run([(0, REPLAYED), (binds, late), (stop, late)], 60, **options)
        assert again == rows


@pytest.mark.parametrize("binds", [3, 4, 7])
def test_a_change_decided_late_binds_at_its_step_and_loses_nothing(binds: int) -> None:
    before, _, _ = run([(0, REPLAYED)], 60, window_rows=40)
    rows, states, last = run([(0, REPLAYED), (binds, changed(binds, 0.6))], 60, window_rows=40)
    assert rows[:binds] == before[:binds]
    assert rows[binds] != before[binds]
    labels = [label for step in rows for piece in step for label in [(piece[0], i) for i in piece[2:]]]
    assert len(labels) == len(set(labels))
    # nothing is passed over: of each source all documents up to the last are given, but for what is still packed
    for index, longest in enumerate(LENGTHS.values()):
        numbers = sorted({label // 1000 for source, label in labels if source == index})
        assert numbers[-1] - len(numbers) <= 40 * 32 / (longest / 4)
    fed = sum(len(piece) - 2 for step in rows[binds:] for piece in step)
    replayed = sum(len(piece) - 2 for step in rows[binds:] for piece in step if piece[0] == 1)
    assert abs(replayed / fed - 0.6) < 0.03
    for stop in range(binds, 59, 5):
        again, _, _ = run(
            [(0, REPLAYED), (binds, changed(binds, 0.6)), (stop, changed(binds, 0.6))], 60, window_rows=40
        )
        assert again == rows
    assert set(last.credit) == set(WEIGHTS)


def test_a_change_that_binds_in_a_restored_window_binds_there() -> None:
    rows, _, _ = run([(0, REPLAYED), (5, changed(5, 0.5))], 40, window_rows=40)
    again, _, _ = run([(0, REPLAYED), (3, changed(5, 0.5))], 40, window_rows=40)
    assert again == rows  # known before it binds: in the checkpoint of step 3


def test_two_changes_and_back_again() -> None:
    once, twice = changed(4, 0.6), changed(9, 0.1, changed(4, 0.6))
    rows, states, _ = run([(0, REPLAYED), (4, once), (9, twice)], 50, window_rows=60)
    again, _, _ = run([(0, REPLAYED), (4, once), (9, twice), (11, twice)], 50, window_rows=60)
    assert again == rows
    labels = [(piece[0], i) for step in rows for piece in step for i in piece[2:]]
    assert len(labels) == len(set(labels))
    assert "returned_ids" in states[20]["anchor"]["sources"]["bb"]


def test_credits_are_those_of_what_was_given_and_waits() -> None:
    _, _, one = run([(0, REPLAYED), (6, changed(6, 0.6))], 7, window_rows=40)
    assert abs(sum(one.credit.values())) < 1e-6
    assert max(abs(credit) for credit in one.credit.values()) < 200


def test_weights_follow_progress() -> None:
    shares = [MOVING.weights(step) for step in range(14)]
    assert shares[0] == pytest.approx({"a": 1 / 1.5, "bb": 0.0, "ccc": 0.5 / 1.5})
    assert shares[-1] == pytest.approx({"a": 0.0, "bb": 1 / 1.1, "ccc": 0.1 / 1.1})
    assert MOVING.mix.changes == [7]
    assert [MOVING.window(step, 5) for step in (0, 7)] == [1, 1]
    assert CHANGING.weights(6) == pytest.approx({"a": 0.1, "bb": 0.1, "ccc": 0.8})
    assert CHANGING.tokens(0, 10) == 5 * 128 + 4 * 256 + 64
    assert sum(CHANGING.planned(10).values()) == pytest.approx(CHANGING.tokens(0, 10))
    assert REPLAYED.weights(3) == pytest.approx({"a": 0.9 * 5 / 7, "bb": 0.1, "ccc": 0.9 * 2 / 7})
