"""Laws of the end of the data: one pass gives every document once, to the last, on any ranks and from any checkpoint;
and sources that may be read more often than a run knew go on as if it had known.
"""

import json
import math
import pickle
import re
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tests.data.every_view import read as walk
from tests.data.made import make_module

from lifecycle.batch import StepBatch
from lifecycle.data.clean.filter_row import filter_row
from lifecycle.data.clean.source import BadRows
from lifecycle.data.mixture.batch_plan import Phase
from lifecycle.data.module import DataModule
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError
from lifecycle.jobs.prepare import prepare
from lifecycle.tokenizer.tokenizer import TokenizerRecipe

ROWS = {"a": 400, "b": 200}
LONG = 400  # steps, more than any pass here


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lifecycle.data.module.WINDOW_ROWS", 32)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two sources whose documents begin with their own number; some are longer than a row."""
    for name, documents in ROWS.items():
        rng = np.random.default_rng(len(name))
        sizes = np.minimum(rng.lognormal(2.5, 1, documents), 150).astype(int)
        lines = [
            json.dumps({"text": f"{name.upper()}{n:06d} " + "word " * int(size)}) + "\n" for n, size in enumerate(sizes)
        ]
        for part in range(3):
            (tmp_path / f"{name}{part}.jsonl").write_text("".join(lines[part::3]))
    return tmp_path


def module(
    folder: Path,
    caps: dict[str, float | None],
    *,
    steps: int = LONG,
    phases: Sequence[Phase] = (),
    to_the_end: bool = False,
    **changes: Any,
) -> DataModule:
    arguments: dict[str, Any] = {
        "sources": {
            name: SourceSpec(path=str(folder / f"{name}*.jsonl"), validation=None, max_epochs=cap)
            for name, cap in caps.items()
        },
        "tokenizer": TokenizerRecipe(vocab_size=300, digits=1, max_bytes=50_000),
        "streams": 4,
        "shuffle_buffer": 40,
        "epoch_source": "a",
        "bad_rows": BadRows(max_share=1.0, min_rows=1),
        "seed": 1,
        "sequence_length": 64,
        "global_batch_tokens": 64 * 8,
        "micro_batch_tokens": 2**20,
        "validation_tokens": 0,
    }
    return make_module(arguments | changes, steps=steps, phases=phases, last=None if to_the_end else "steps")


def rows_of(batch: StepBatch) -> torch.Tensor:
    """(columns, B, T) of one rank's step."""
    return torch.cat([torch.stack(list(micro.tensors().values())) for micro in batch.micro], 1)


def read(data: DataModule, stop: int | None = None) -> tuple[dict[int, torch.Tensor], dict[int, Any]]:
    """Rows and checkpoint of every step, to the end of the data or before `stop`."""
    return walk(data, stop, of=rows_of)


def documents(data: DataModule, rows: dict[int, torch.Tensor]) -> Counter[str]:
    """How often each document begins in the rows."""
    found: Counter[str] = Counter()
    for step in rows.values():
        for row in step[0]:
            found.update(re.findall(r"[AB]\d{6}", data.tokenizer.decode(row.tolist())))
    return found


def trained(rows: dict[int, torch.Tensor]) -> int:
    return sum(int((step[1] != -100).sum()) for step in rows.values())


def once(name: str, times: int = 1) -> Counter[str]:
    return Counter({f"{name.upper()}{n:06d}": times for n in range(ROWS[name])})


@pytest.mark.parametrize("exhausted", ["error", "drop"])
@pytest.mark.parametrize(("prepared", "workers"), [(False, 0), (False, 2), (True, 0)])
def test_a_run_of_one_pass_gives_every_document_once_and_ends_well(
    texts: Path, exhausted: str, prepared: bool, workers: int
) -> None:
    changes: dict[str, Any] = {"exhausted": exhausted, "workers": workers}
    if prepared:
        prepare(data=module(texts, {"a": 1}).corpus, folder=texts / "made", processes=1)
        changes["prepared"] = str(texts / "made")
    data = module(texts, {"a": 1}, to_the_end=True, **changes)
    assert data.corpus.ends_with(1) and not data.corpus.ends_with(2) and not data.corpus.ends_with(None)
    rows, states = read(data)
    assert documents(data, rows) == once("a")
    assert trained(rows) == data.corpus.epoch_positions(64) == data.ledger()["sources"]["a"]["seen_tokens"]
    assert data.fault() is None and data.is_last(len(rows)) and states[len(rows)]["over"]
    assert all(step.shape == (5, 8, 64) for step in rows.values())  # the last one is filled up with padding
    full = [int((step[1] != -100).any(1).sum()) for step in rows.values()]
    assert full[:-1] == [8] * (len(rows) - 1)
    assert data.ledger()["sources"]["a"]["epochs"] == pytest.approx(1.0)
    assert data.ledger()["sources"]["a"]["rows"] == ROWS["a"]


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("passes", [0.5, 1.25])
def test_a_part_of_a_pass_is_given_and_no_more_and_ends_well(texts: Path, passes: float, prepared: bool) -> None:
    changes: dict[str, Any] = {"shuffle_buffer": 10_000}
    if prepared:
        prepare(data=module(texts, {"a": 1}).corpus, folder=texts / "made", processes=1)
        changes["prepared"] = str(texts / "made")
    data = module(texts, {"a": passes}, to_the_end=True, **changes)
    assert data.corpus.ends_with(passes)
    rows, states = read(data)
    found = documents(data, rows)
    assert sum(found.values()) == passes * ROWS["a"] and max(found.values()) == math.ceil(passes)
    assert data.fault() is None and data.is_last(len(rows))
    assert data.ledger()["sources"]["a"]["epochs"] == pytest.approx(passes, abs=0.01)
    whole = module(texts, {"a": 2}, to_the_end=True, **changes)  # the rest of the passes, where it may go on
    whole.load_state_dict(states[2])
    rest, _ = read(whole)
    assert documents(data, {s: rows[s] for s in range(2)} | rest) == once("a", 2)


def test_a_checkpoint_of_any_step_goes_on_to_the_same_end(texts: Path) -> None:
    rows, states = read(module(texts, {"a": 1}, to_the_end=True))
    in_tail = [step for step, state in states.items() if state["tail"]]
    assert len(in_tail) >= 3  # the last of them has given out everything
    for step in (1, in_tail[0] - 1, *in_tail):
        again = module(texts, {"a": 1}, to_the_end=True)
        again.load_state_dict(pickle.loads(pickle.dumps(states[step])))
        assert again.is_last(step) == (step == len(rows))
        rest, after = read(again)
        assert list(rest) == list(range(step, len(rows)))
        assert all(torch.equal(rest[s], rows[s]) for s in rest)
        assert again.is_last(len(rows)) and again.fault() is None
        if rest:
            assert after[len(rows)]["tail"]["seen"] == states[len(rows)]["tail"]["seen"]


def on_ranks(make: Any, world: int, state: Any = None) -> tuple[list[torch.Tensor], list[DataModule], Any]:
    """The steps of `world` ranks that are threads, which tell each other what ranks do; and a checkpoint of all."""
    barrier, told = threading.Barrier(world), [None] * world
    where = threading.local()

    def every_rank(mine: Any) -> list[Any]:
        told[where.rank] = pickle.loads(pickle.dumps(mine))
        barrier.wait(60)
        everything = list(told)
        barrier.wait(60)
        return everything

    parts: list[dict[int, torch.Tensor]] = [{} for _ in range(world)]
    states: list[Any] = [None] * world
    modules = [make() for _ in range(world)]

    def work(rank: int) -> None:
        where.rank = rank
        data = modules[rank]
        with patch.object(data, "_rank", lambda: (rank, world)):
            if state is not None:
                data.load_state_dict(state)
            parts[rank], all_states = read(data)
            states[rank] = all_states

    with patch("lifecycle.data.stream.loading.exchange.every_rank", every_rank):
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    steps = [torch.cat([part[step] for part in parts], 1) for step in sorted(parts[0])]
    return steps, modules, states[0]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_go_over_to_the_tail_together_and_give_the_same_steps(texts: Path, world: int) -> None:
    alone, states = read(module(texts, {"a": 1}, to_the_end=True))
    together, modules, after = on_ranks(lambda: module(texts, {"a": 1}, to_the_end=True), world)
    assert len(together) == len(alone)
    assert all(torch.equal(a, b) for a, b in zip(together, alone.values(), strict=True))
    assert all(data.is_last(len(alone)) for data in modules)
    step = next(step for step, state in states.items() if state["tail"])
    for state in (states[step], after[step]):  # of one rank, and of several, inside the tail
        rest, _, _ = on_ranks(lambda: module(texts, {"a": 1}, to_the_end=True), world, state)
        assert all(torch.equal(a, alone[s]) for s, a in enumerate(rest, step)) and len(rest) == len(alone) - step


def test_what_is_used_up_before_the_end_of_the_run_is_an_error_after_all_was_given(texts: Path) -> None:
    data = module(texts, {"a": 1})
    rows, states = read(data)
    assert documents(data, rows) == once("a")
    assert isinstance(data.fault(), UserError) and data.fails_after(len(rows)) and not data.is_last(len(rows))
    again = module(texts, {"a": 1})
    again.load_state_dict(states[len(rows)])
    with pytest.raises(UserError, match="data.sources.a has been read as often as its max_epochs allows"):
        read(again)


def test_all_sources_dropped_is_the_end(texts: Path) -> None:
    data = module(texts, {"a": 1, "b": 2}, exhausted="drop")
    rows, _ = read(data)
    assert documents(data, rows) == once("a") + once("b", 2)
    assert data.fault() is None and data.is_last(len(rows))


@pytest.mark.parametrize("prepared", [False, True])
def test_a_raised_cap_gives_the_rows_of_a_run_that_had_it_from_the_start(texts: Path, prepared: bool) -> None:
    changes: dict[str, Any] = {}
    if prepared:
        prepare(data=module(texts, {"a": None, "b": None}).corpus, folder=texts / "made", processes=1)
        changes["prepared"] = str(texts / "made")
    first, states = read(module(texts, {"a": None, "b": 1}, **changes), stop=200)
    before = [step for step, state in states.items() if not state["tail"]]
    assert len(first) > len(before) > 5
    whole, _ = read(module(texts, {"a": None, "b": 3}, **changes), stop=len(first) + 20)
    assert all(torch.equal(first[step - 1], whole[step - 1]) for step in before)
    for step in (before[2], before[-2], before[-1]):
        again = module(texts, {"a": None, "b": 3}, **changes)
        again.load_state_dict(states[step])
        rest, _ = read(again, stop=len(first) + 20)
        assert list(rest) == list(range(step, len(first) + 20))
        assert all(torch.equal(rest[s], whole[s]) for s in rest)


@pytest.mark.parametrize("where", ["in the tail", "at the end"])
def test_a_pass_that_was_finished_and_then_extended_has_every_document_once_a_pass(texts: Path, where: str) -> None:
    first, states = read(module(texts, {"a": 1}, to_the_end=True))
    in_tail = [step for step, state in states.items() if state["tail"]]
    step = in_tail[1] if where == "in the tail" else in_tail[-1]
    data = module(texts, {"a": 2}, to_the_end=True)
    data.load_state_dict(states[step])
    rest, after = read(data)
    rows = {s: first[s] for s in range(step)} | rest
    assert documents(data, rows) == once("a", 2)
    assert trained(rows) == 2 * data.corpus.epoch_positions(64) == data.ledger()["sources"]["a"]["seen_tokens"]
    assert data.ledger()["sources"]["a"]["epochs"] == pytest.approx(2.0)
    assert data.is_last(len(rows)) and data.fault() is None
    middle = module(texts, {"a": 2}, to_the_end=True)
    middle.load_state_dict(after[step + 2])
    again, _ = read(middle)
    assert all(torch.equal(again[s], rest[s]) for s in again) and len(again) == len(rest) - 2


def test_a_checkpoint_of_the_tail_of_a_mixture_goes_on_with_every_document_once_a_pass(texts: Path) -> None:
    first, states = read(module(texts, {"a": None, "b": 1}), stop=200)
    in_tail = [step for step, state in states.items() if state["tail"]]
    for step in (in_tail[0], in_tail[-1]):
        data = module(texts, {"a": None, "b": 2})
        data.load_state_dict(states[step])
        rest, _ = read(data, stop=200)
        assert isinstance(data.fault(), UserError)
        found = documents(data, {s: first[s] for s in range(step)} | rest)
        passes = [found[name] for name in once("b")]
        assert max(passes) == 2 and sum(passes) > 2 * ROWS["b"] - 30  # all but what fills no whole step
        passes = [found[name] for name in once("a")]
        assert max(passes) - min(passes) <= 2  # of what is read on and on, all shares alike


def test_a_source_that_was_dropped_comes_back_when_its_cap_is_raised(texts: Path) -> None:
    first, states = read(module(texts, {"a": None, "b": 1}, exhausted="drop"), stop=100)
    drops = [step for step, state in states.items() if any(s["anchor"]["gone"] for s in state["streams"].values())]
    for step in (drops[0] - 2, drops[0] - 1, drops[0], drops[0] + 20):
        data = module(texts, {"a": None, "b": 2}, exhausted="drop")
        data.load_state_dict(states[step])
        rest, after = read(data, stop=step + 120)
        found = documents(data, {s: first[s] for s in range(step)} | rest)
        assert {name: times for name, times in found.items() if name[0] == "B"} == once("b", 2)
        passes = [times for name, times in found.items() if name[0] == "A"]
        assert len(passes) == ROWS["a"] and max(passes) - min(passes) <= 2


def test_rows_that_were_packed_stay_as_they_were_where_a_run_goes_on_with_other_ends(texts: Path) -> None:
    """`data.exhausted`, and whether the run ends with a source, may change: what was packed before is packed again."""
    caps: dict[str, float | None] = {"a": 3, "b": 1}
    first, states = read(module(texts, caps, exhausted="drop"))
    assert any(state["streams"][0]["anchor"]["gone"] for state in states.values())
    in_tail = [step for step, state in states.items() if state["tail"]]
    for step in [*range(2, in_tail[0], 15), *in_tail[:-1:2]]:
        data = module(texts, caps, exhausted="drop", to_the_end=True)  # the end of a is now that of the run
        data.load_state_dict(states[step])
        rest, _ = read(data)
        found = documents(data, {s: first[s] for s in range(step)} | rest)
        assert Counter({name: times for name, times in found.items() if name[0] == "A"}) == once("a", 3)
        assert max(times for name, times in found.items() if name[0] == "B") == 1 and data.fault() is None
        data = module(texts, caps, exhausted="error")
        data.load_state_dict(states[step])
        try:
            rest, _ = read(data)
            fault = str(data.fault())
        except UserError as error:  # b is used up already
            rest, fault = {}, str(error)
        assert "data.sources.b has been read as often" in fault
        found = documents(data, {s: first[s] for s in range(step)} | rest)
        assert all(times <= (3 if name[0] == "A" else 1) for name, times in found.items())


@pytest.mark.parametrize("where", ["before the tail", "in the tail"])
def test_a_run_that_goes_on_without_what_was_used_up_reads_the_rest_by_its_streams(texts: Path, where: str) -> None:
    caps: dict[str, float | None] = {"a": None, "b": 1}
    first, states = read(module(texts, caps))
    in_tail = [step for step, state in states.items() if state["tail"]]
    step = in_tail[0] - 1 if where == "before the tail" else in_tail[len(in_tail) // 2]
    data = module(texts, caps, exhausted="drop")  # as the message of the first run says
    data.load_state_dict(states[step])
    rest, after = read(data, stop=step + 120)
    assert not any(state["tail"] for state in after.values())
    found = documents(data, {s: first[s] for s in range(step)} | rest)
    assert Counter({name: times for name, times in found.items() if name[0] == "B"}) == once("b")
    passes = [times for name, times in found.items() if name[0] == "A"]
    assert len(passes) == ROWS["a"] and max(passes) - min(passes) <= 2


def test_a_source_of_fewer_rows_than_streams_has_been_read_once_after_one_pass(texts: Path) -> None:
    (texts / "b0.jsonl").write_text(json.dumps({"text": "B000000 word"}) + "\n")
    (texts / "b1.jsonl").unlink()
    (texts / "b2.jsonl").unlink()
    data = module(texts, {"a": 1, "b": 1}, exhausted="drop")
    assert documents(data, read(data)[0])["B000000"] == 1
    assert data.ledger()["sources"]["b"]["epochs"] == pytest.approx(1.0)


def test_a_run_with_another_end_goes_on_with_the_rows_of_its_own_phases(texts: Path) -> None:
    """Phases that begin at shares of the run begin at other steps where it is made longer."""

    def planned(steps: int) -> DataModule:
        phases = [Phase(step=0, row_length=32, rows=16), Phase(step=steps // 2, row_length=64, rows=8)]
        return module(texts, {"a": None}, steps=steps, phases=phases)

    first, states = read(planned(20))
    for step, longer in ((9, 40), (11, 40), (13, 40), (19, 60), (6, 10)):
        data = planned(longer)
        data.load_state_dict(states[step])
        rest, _ = read(data)
        assert {s: rows.shape[1:] for s, rows in rest.items()} == {
            s: (16, 32) if s < longer // 2 else (8, 64) for s in range(step, longer)
        }
        passes = documents(data, {s: first[s] for s in range(step)} | rest)
        assert max(passes.values()) - min(passes[name] for name in once("a")) <= 2


def test_a_lowered_cap_ends_the_source_where_it_stands(texts: Path) -> None:
    _, states = read(module(texts, {"a": None, "b": 9}, exhausted="drop"), stop=90)
    assert states[90]["streams"][0]["totals"]["b"]["epochs"] > 2
    data = module(texts, {"a": None, "b": 1}, exhausted="drop")
    data.load_state_dict(states[90])
    rest, _ = read(data, stop=130)
    assert not any((rows[4] == 1).any() for step, rows in rest.items() if step > 110)


def test_reading_that_fails_ends_the_batches_and_says_why_later(texts: Path) -> None:
    for workers in (0, 2):
        data = module(texts, {"a": None}, workers=workers)
        loader = data.train_dataloader()
        with patch("lifecycle.data.stream.documents.filter_row", side_effect=_failing(190)):
            rows = [rows_of(batch) for batch in loader]
        assert len(rows) > 2 and data.fails_after(len(rows)) and not data.is_last(len(rows))
        assert "the disk is gone" in str(data.fault())
        at_once = module(texts, {"a": None}, workers=workers)
        with (
            patch("lifecycle.data.stream.documents.filter_row", side_effect=_failing(0)),
            pytest.raises((OSError, RuntimeError), match="the disk is gone"),
        ):
            list(at_once.train_dataloader())


def _failing(after: int) -> Any:
    calls = 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError("the disk is gone")
        return filter_row(*args)

    return failing
