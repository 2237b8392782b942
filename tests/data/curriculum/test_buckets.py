"""Laws of a curriculum: every row belongs to one level, the ledger follows the table, and a stopped run goes on the
same.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tests.data.curriculum.test_curriculum import curriculum, stages
from tests.data.made import make_module
from tests.items import ids_of

from lifecycle.batch import Cursor, StepBatch
from lifecycle.data.clean.source import BadRows, among
from lifecycle.data.mixture.batch_plan import Phase
from lifecycle.data.module import DataModule
from lifecycle.data.quality.rules import FilterSpec
from lifecycle.data.read.spec import SourceSpec, ValidationRatio
from lifecycle.data.stream.pieces import Exhausted
from lifecycle.errors import UserError
from lifecycle.jobs.prepare import prepare
from lifecycle.tokenizer.tokenizer import TokenizerRecipe

STEPS = 20
WORDS = "the cat sat on a mat and then it ran far away from that old grey house near some river bank".split()
BY_FIELD = curriculum(by="field", scale="none", older_share=0.1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lifecycle.data.module.WINDOW_ROWS", 64)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """`graded`: rows of levels 1 to 5 in two files, some broken, repeated or short; `plain`: without levels."""
    rng = np.random.default_rng(0)
    for name, rows in (("graded-a", 250), ("graded-b", 150), ("plain", 200)):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for number in range(rows):
                words = " ".join(rng.choice(WORDS, int(rng.integers(5, 40))))
                text = f"{name} {number} {words}" if number % 11 else "again"
                row = {"text": text if number % 13 else "x", "level": f"Level {rng.integers(1, 6)}"}
                file.write(("{broken" if number % 100 == 3 else json.dumps(row)) + "\n")
    return tmp_path


def module(folder: Path, *, steps: int = STEPS, phases: Sequence[Phase] = (), **changes: Any) -> DataModule:
    graded = SourceSpec(
        path="graded-*.jsonl",
        fields={"level": "level"},
        weight=0.6,
        filters=FilterSpec(exact_duplicates=True, min_chars=3),
        validation=ValidationRatio(ratio=0.1),
    )
    arguments: dict[str, Any] = {
        "sources": {"graded": graded, "plain": SourceSpec(path="plain.jsonl", weight=0.4)},
        "tokenizer": TokenizerRecipe(vocab_size=400, max_bytes=50_000, digits=1),
        "root": str(folder),
        "bad_rows": BadRows(max_share=0.1, min_rows=100),
        "sequence_length": 32,
        "global_batch_tokens": 32 * 8,
        "micro_batch_tokens": 128,
        "validation_tokens": 400,
        "folder": folder,
        "curriculum": BY_FIELD,
    }
    return make_module(arguments | changes, steps=steps, phases=phases)


def one_pass(data: DataModule, names: list[str], streams: int) -> Counter[str]:
    """The training texts of one pass over sources that are read once, by all streams together."""
    found: Counter[str] = Counter()
    for name in names:
        for stream in range(streams):
            documents = data.corpus.open_documents(name, streams, {stream: None})[stream]
            with pytest.raises(Exhausted):
                while True:
                    found[data.tokenizer.decode(ids_of(documents.next()).tolist())] += 1
    return found


def limited(**changes: Any) -> dict[str, SourceSpec]:
    """`graded` alone, read once."""
    spec = SourceSpec(
        path="graded-*.jsonl",
        fields={"level": "level"},
        max_epochs=1,
        filters=FilterSpec(exact_duplicates=True, min_chars=3),
        validation=ValidationRatio(ratio=0.1),
        **changes,
    )
    return {"graded": spec}


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("max_rows", [None, 333])
def test_every_row_belongs_to_exactly_one_level(texts: Path, streams: int, max_rows: int | None) -> None:
    whole = module(texts, sources=limited(max_rows=max_rows), curriculum=None)
    dealt = module(texts, sources=limited(max_rows=max_rows))
    names = ["graded.level1-2", "graded.level2-3.5", "graded.level3.5-5"]
    assert dealt.source_names == names
    ordinals = np.concatenate([source.rows for source in dealt.sources if source.rows is not None])
    assert sorted(ordinals.tolist()) == list(range(max_rows or 400))
    rows = one_pass(whole, ["graded"], streams)
    assert one_pass(dealt, names, streams) == rows and rows.total() > 200
    first = one_pass(dealt, names[:1], streams)
    levels = {}
    for line in (texts / "graded-a.jsonl").read_text().splitlines():
        if line != "{broken":
            levels[json.loads(line)["text"]] = json.loads(line)["level"]
    assert {levels[text] for text in first if text in levels and text != "again"} == {"Level 1", "Level 2"}


def test_a_table_of_one_line_reads_the_rows_of_the_plain_source(texts: Path) -> None:
    dealt = module(texts, sources=limited(), curriculum=curriculum(stages=stages((1.0, (1.0, 5.0)))))
    whole = module(texts, sources=limited(), curriculum=None)
    assert dealt.source_names == ["graded.level1-5"]
    assert one_pass(dealt, dealt.source_names, 2) == one_pass(whole, ["graded"], 2)


def test_what_is_left_out_is_counted_once(texts: Path) -> None:
    def counted(data: DataModule) -> Counter[str]:
        total: Counter[str] = Counter()
        for source in data.sources:
            documents = data.corpus.documents(source.name)
            with pytest.raises(Exhausted):
                while True:
                    documents.next()
            total.update(documents.totals()["counts"])
        return total

    plain = counted(module(texts, sources=limited(), curriculum=None))
    assert counted(module(texts, sources=limited())) == plain
    assert {"kept:", "held:out", "dropped:exact duplicate", "dropped:too short", "bad:bad json"} == set(plain)


def consume(data: DataModule, world: int, until: int) -> dict[int, Any]:
    """The streams' states after `until` steps on `world` ranks."""
    for parts in zip(*(iter(on_rank(data, rank, world)) for rank in range(world)), strict=True):
        if parts[0].cursor.step == until:
            return {s: state for batch in parts for s, state in batch.cursor.streams.items()}
    raise AssertionError("the loader ended early")


def on_rank(data: DataModule, rank: int, world: int) -> Iterable[StepBatch]:
    with patch.object(data, "_rank", lambda: (rank, world)):
        return data.train_dataloader()


def digests(data: DataModule, world: int) -> list[str]:
    """A hash of every step's rows, ranks in order."""
    out = []
    for parts in zip(*(iter(on_rank(data, rank, world)) for rank in range(world)), strict=True):
        rows = [
            torch.cat([getattr(micro, name) for batch in parts for micro in batch.micro])
            for name in ("input_ids", "labels", "document_ids", "source_ids")
        ]
        out.append(hashlib.sha256(b"".join(r.numpy().tobytes() for r in rows)).hexdigest())
    return out


@pytest.mark.parametrize(("before", "after", "workers"), [(1, 1, 0), (2, 4, 0), (1, 2, 1)])
def test_a_stopped_run_goes_on_the_same_across_every_change_of_level(
    texts: Path, before: int, after: int, workers: int
) -> None:
    whole = digests(module(texts), 1)
    assert len(whole) == STEPS
    for stop in (5, 6, 7, 12):  # the levels change at steps 6 and 12
        stopped = module(texts)
        stopped.consumed(Cursor(step=stop, streams=consume(module(texts), before, stop)))
        resumed = module(texts, workers=workers)
        resumed.load_state_dict(stopped.state_dict())
        assert digests(resumed, after) == whole[stop:]


def test_the_ledger_follows_the_table_within_one_piece_a_stream(texts: Path) -> None:
    seen: dict[int, dict[str, int]] = {}
    data = module(texts, steps=40)
    for batch in on_rank(data, 0, 1):
        states = batch.cursor.streams.values()
        seen[batch.cursor.step] = {n: sum(s["seen"][n] for s in states) for n in data.source_names}
    bounds = [0, *data.mix.changes, 40]
    assert bounds == [0, 12, 24, 40]
    pieces = 8 * 32  # one of each of 8 streams
    for begin, end in zip(bounds, bounds[1:], strict=False):
        shares = data.plan.weights(begin)
        given = {n: seen[end][n] - seen.get(begin, {}).get(n, 0) for n in data.source_names}
        for name, share in shares.items():
            assert abs(given[name] - share * sum(given.values())) <= 2 * pieces, (begin, name)
        assert sum(shares[n] for n in shares if n != "plain") == pytest.approx(0.6)
    assert seen[12]["graded.level2-3.5"] == seen[24]["graded.level3.5-5"] == 0
    data.consumed(batch.cursor)
    ledger = data.ledger()["sources"]
    assert {row["domain"] for row in ledger.values()} == {"graded", "plain"}
    assert ledger["graded.level1-2"]["planned_tokens"] == pytest.approx(
        40 * 256 * 0.6 * (12 + 12 * 0.1 + 16 * 0.1 * _share_of_first(data)) / 40, rel=0.02
    )


def _share_of_first(data: DataModule) -> float:
    first, second, _ = (level.bytes for level in data.corpus.levels["graded"])
    return first / (first + second)


def test_what_is_measured_is_the_same_text_with_and_without(texts: Path) -> None:
    with_it, without = module(texts), module(texts, curriculum=None)
    assert with_it.tokenizer.sha256 == without.tokenizer.sha256
    for domain, held in without.held_out.items():
        np.testing.assert_array_equal(with_it.held_out[domain].rows["input_ids"], held.rows["input_ids"])
    assert {domain: held.bytes for domain, held in with_it.held_out.items()} == {
        domain: held.bytes for domain, held in without.held_out.items()
    }
    assert with_it.domains["graded"][0] == pytest.approx(0.6)
    assert with_it.corpus.epoch_source == without.corpus.epoch_source
    assert with_it.corpus.epoch_tokens(10, with_it.phases) == without.corpus.epoch_tokens(10, without.phases)
    assert with_it.corpus.epoch_positions(64) == without.corpus.epoch_positions(64)


def test_levels_are_prepared_and_read_as_any_source(texts: Path) -> None:
    prepare(data=module(texts).corpus, folder=texts / "made", processes=1)
    made = module(texts, prepared=str(texts / "made"))
    assert made.corpus.epoch_positions(64) == module(texts).corpus.epoch_positions(64)
    assert made.held_out["graded"].documents == module(texts).held_out["graded"].documents
    assert len(digests(made, 1)) == STEPS
    with pytest.raises(UserError, match=r"graded: not in"):
        module(texts, prepared=str(texts / "made"), curriculum=None)
    other = curriculum(by="field", scale="none", stages=stages((0.5, (1.0, 2.0)), (1.0, (2.0, 5.0))))
    with pytest.raises(UserError, match=r"graded.level2-5: not in"):
        module(texts, prepared=str(texts / "made"), curriculum=other)


def test_a_level_of_fewer_rows_than_streams_reaches_every_stream(texts: Path) -> None:
    rows = [{"text": f"{n}", "level": 5 if n % 8 == 1 else 1} for n in range(16)]
    (texts / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = SourceSpec(path="few.jsonl", fields={"level": "level"}, validation=None)
    data = module(
        texts,
        sources={"few": spec},
        curriculum=curriculum(by="field", scale="none", stages=stages((0.5, (1.0, 3.0)), (1.0, (3.0, 5.0)))),
    )
    for stream in range(8):
        documents = data.corpus.open_documents("few.level3-5", 8, {stream: None})[stream]
        assert {data.tokenizer.decode(ids_of(documents.next()).tolist()) for _ in range(6)} <= {"1", "9"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": ["grade"]}, "names grade; the sources are graded, plain"),
        ({"sources": ["plain"], "by": "field"}, "no row of data.sources.plain has a score"),
    ],
)
def test_sources_that_cannot_be_ordered_are_refused(texts: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        module(texts, curriculum=curriculum(**changes))


def test_weights_that_move_by_themselves_are_refused(texts: Path) -> None:
    moving = {"graded": SourceSpec(path="graded-*.jsonl", weight={"start": 1, "end": 0.5})}
    with pytest.raises(UserError, match="give it a constant weight"):
        module(texts, sources=moving, curriculum=curriculum())
    with pytest.raises(UserError, match="no source has a level"):
        module(texts, sources={"plain": SourceSpec(path="plain.jsonl")})
    with pytest.raises(UserError, match="stage.phases gives graded a weight"):
        weighed = Phase(step=0, row_length=32, rows=8, weights={"graded": 1.0, "plain": 1.0})
        module(texts, steps=5, phases=[weighed])


def test_among() -> None:
    chosen = among(np.array([0, 3, 8, 9]))
    assert [n for n in range(20) if chosen(n)] == [0, 3, 8, 9]
    assert not among(np.zeros(0, np.int64))(0)
