"""Laws of dealing a source to streams: within one pass every wanted row is met once, by one stream, whatever files,
sizes, duplicates, streams and processes; by one reader a process; and streams meet other rows in every pass.
"""

import contextlib
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.items import ids_of

from lifecycle.batch import Example, Item
from lifecycle.data.clean.filter_row import HELD_OUT, FilteredRow, filter_row
from lifecycle.data.clean.row_counts import with_row_counts
from lifecycle.data.clean.source import BadRows, HeldOut, Source
from lifecycle.data.read.files.listing import resolve
from lifecycle.data.read.files.retrying import RetryingFile
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream import source_reader
from lifecycle.data.stream.documents import RawDocuments, place_in
from lifecycle.data.stream.pieces import Exhausted
from lifecycle.data.stream.source_reader import START, SourceReader
from lifecycle.data.survey.source_size import look_at, survey
from lifecycle.errors import UserError

KINDS = ("jsonl", "jsonl.gz", "parquet")


def write(path: Path, rows: range) -> None:
    """Rows whose text is their own number."""
    texts = [f"row {number}" for number in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=7)
        return
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def source(folder: Path, sizes: list[int], kinds: list[str] | None = None, **changes: Any) -> Source:
    """Files of so many rows, numbered through."""
    folder.mkdir(parents=True, exist_ok=True)
    begin = 0
    for number, size in enumerate(sizes):
        write(folder / f"{number:03d}.{kinds[number] if kinds else 'jsonl'}", range(begin, begin + size))
        begin += size
    spec = SourceSpec(
        path=str(folder),
        validation=None,
        max_epochs=changes.pop("max_epochs", 2),
        max_rows=changes.pop("max_rows", None),
    )
    return Source(
        name="s",
        index=0,
        spec=spec,
        files=resolve(spec, name="s", cache=folder.parent / "cache"),
        bad_rows=BadRows(max_share=0.1, min_rows=100),
        **changes,
    )


def make(rows: Sequence[FilteredRow]) -> list[Item | str]:
    return [Example(ids=np.array([int(str(row.text).split()[1])] * 2, np.int32)) for row in rows]


def opened(one: Source, owned: list[int], streams: int, buffer: int, states: Any = None) -> dict[int, RawDocuments]:
    """The documents of the streams that one process owns."""
    states = states or dict.fromkeys(owned)
    at = {stream: place_in(states[stream]) for stream in owned}
    reader = SourceReader(one, at=at, streams=streams, seed=3, buffer=buffer)
    return {stream: RawDocuments(reader, make, stream=stream, state=states[stream]) for stream in owned}


def take_all(documents: dict[int, RawDocuments], rng: np.random.Generator) -> dict[int, list[int]]:
    """Until all are exhausted, some documents of a stream at once: streams drift apart."""
    given: dict[int, list[int]] = {stream: [] for stream in documents}
    alive = list(documents)
    while alive:
        stream = alive[int(rng.integers(len(alive)))]
        for _ in range(int(rng.integers(1, 20))):
            try:
                given[stream].append(int(ids_of(documents[stream].next())[0]))
            except Exhausted:
                alive.remove(stream)
                break
    return given


@dataclass
class Layout:
    """A source, what of it is wanted in one pass, and how it is read."""

    source: Source
    wanted: list[int]
    streams: int
    buffer: int
    owners: list[list[int]]


def layout(folder: Path, seed: int) -> Layout:
    """A random one."""
    rng = np.random.default_rng(seed)
    files = int(rng.choice([1, 2, 3, 5, 40, 90], p=[0.25, 0.25, 0.2, 0.2, 0.05, 0.05]))
    sizes = np.minimum(rng.lognormal(rng.uniform(0, 3), rng.uniform(0, 2), files), 600).astype(int)
    sizes[int(rng.integers(files))] += 1
    total = int(sizes.sum())
    kinds = [str(kind) for kind in rng.choice(KINDS, files)]
    wanted = np.arange(total)
    changes: dict[str, Any] = {}
    if rng.random() < 0.3:
        limit = int(rng.integers(1, total + 5))
        wanted, changes["max_rows"] = wanted[wanted < limit], limit
    if rng.random() < 0.4:
        gone = np.flatnonzero(rng.random(len(wanted)) < rng.uniform(0, 0.9))
        gone = gone[:-1] if len(gone) == len(wanted) else gone
        wanted, changes["left_out"] = np.setdiff1d(wanted, gone), {"exact duplicate": gone}
    if rng.random() < 0.2:
        changes["rows"] = np.sort(rng.choice(wanted, int(rng.integers(1, len(wanted) + 1)), replace=False))
        wanted = changes["rows"]
    one = source(folder / "data", sizes.tolist(), kinds, **changes)
    if rng.random() < 0.5 and one.is_numbered:
        one = with_row_counts(one, cache=folder / "cache")
    streams = int(rng.integers(1, 17))
    parts = rng.integers(0, int(rng.integers(1, 5)), streams)
    owners = [np.flatnonzero(parts == part).tolist() for part in set(parts.tolist())]
    return Layout(one, wanted.tolist(), streams, int(rng.choice([1, 8, 50, 10_000])), owners)


def check(folder: Path, seed: int) -> None:
    case = layout(folder, seed)
    rng = np.random.default_rng(seed)
    given: dict[int, list[int]] = {}
    for owned in case.owners:
        given |= take_all(opened(case.source, owned, case.streams, case.buffer), rng)
    together = opened(case.source, list(range(case.streams)), case.streams, case.buffer)
    assert take_all(together, rng) == given  # whatever the processes
    passes = [Counter[int](), Counter[int]()]
    once = replace(case.source, spec=replace(case.source.spec, max_epochs=1))
    first = take_all(opened(once, list(range(case.streams)), case.streams, case.buffer), rng)
    for stream, rows in given.items():
        share = len(first[stream])
        assert rows[:share] == first[stream]
        assert len(case.wanted) // case.streams <= share <= -(-len(case.wanted) // case.streams)
        passes[0].update(rows[:share])
        passes[1].update(rows[share:])
    assert passes == [Counter(case.wanted)] * 2


@pytest.mark.parametrize("seed", range(12))
def test_within_a_pass_every_wanted_row_is_met_once_by_one_stream(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed)


@pytest.mark.slow
def test_a_thousand_random_layouts_are_dealt_out_exactly(tmp_path: Path) -> None:
    for seed in range(100, 1100):
        check(tmp_path / str(seed), seed)


def test_streams_resume_together_where_each_was(tmp_path: Path) -> None:
    one = source(tmp_path / "data", [61, 3, 120, 19], ["jsonl.gz", "parquet", "jsonl", "jsonl.gz"], max_epochs=3)
    whole = opened(one, [0, 1, 2], 3, 30)
    ahead = {0: 5, 1: 100, 2: 31}  # far apart
    for stream, count in ahead.items():
        for _ in range(count):
            whole[stream].next()
    states = {stream: json.loads(json.dumps(documents.state())) for stream, documents in whole.items()}
    again = opened(one, [0, 1, 2], 3, 30, states)
    rest = take_all(again, np.random.default_rng(1))
    assert rest == take_all(whole, np.random.default_rng(2))
    assert all(again[s].totals() == whole[s].totals() for s in range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_reads_a_corpus_once_a_pass_for_all_its_streams(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = source(tmp_path / "data", [300] * 5, [kind] * 5, max_epochs=2)
    fetched = 0
    part = RetryingFile._part

    def counting(self: RetryingFile, wanted: int) -> bytes:
        nonlocal fetched
        fetched += len(data := part(self, wanted))
        return data

    monkeypatch.setattr(RetryingFile, "_part", counting)
    take_all(opened(one, [0], 1, 160), np.random.default_rng(0))
    alone, fetched = fetched, 0
    streams = opened(one, list(range(16)), 16, 160)
    states = {}
    for taken in range(2 * 1500 // 16 + 1):
        for stream, documents in streams.items():
            for _ in range(stream % 3 + 1 if taken < 8 else 1):  # some are ahead
                with contextlib.suppress(Exhausted):
                    documents.next()
        if taken == 94:
            states = {stream: documents.state() for stream, documents in streams.items()}
    assert fetched <= alone
    fetched = 0
    streams = opened(one, list(range(16)), 16, 160, states)
    for documents in [*streams.values()] * 80:
        with contextlib.suppress(Exhausted):
            documents.next()
    assert fetched < 0.7 * alone  # from the slowest on


@pytest.mark.parametrize("kind", [*KINDS, "txt"])
def test_passes_are_measured_in_what_is_read_and_sizes_extrapolated_from_it(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        texts = ["".join(map(chr, rng.integers(97, 123, int(size)))) for size in rng.integers(100, 400, 2000)]
        path = tmp_path / f"{number}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"text": texts}), path, row_group_size=300)
        else:
            lines = [text if kind == "txt" else json.dumps({"text": text}) for text in texts]
            content = "".join(line + "\n" for line in lines).encode()
            path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    spec = SourceSpec(path=str(tmp_path / f"*.{kind}"), validation=None, sample_by="line", max_epochs=2)
    files = resolve(spec, name="s", cache=tmp_path / "cache")
    plain = Source(name="s", index=0, spec=spec, files=files, bad_rows=BadRows(max_share=0, min_rows=1))
    limited = replace(plain, spec=replace(spec, max_rows=5000))
    block = 2**16 / sum(file.size for file in files)  # what is read of a compressed file at once
    for one, rows in ((plain, 8000), (limited, 5000)):
        documents = RawDocuments.alone(
            one, lambda rows: [Example(ids=np.zeros(4, np.int32))] * len(rows), seed=0, buffer=100
        )
        for given in range(1, 2 * rows + 1):
            documents.next()
            if given % 1111 == 0 or given == 2 * rows:
                assert documents.totals()["epochs"] == pytest.approx(given / rows, abs=0.03 + block)
        assert documents.totals()["epochs"] == pytest.approx(2.0)
    true = survey(look_at({"s": spec}, root=None, cache=tmp_path), tokenizer=None)[0].tokens
    monkeypatch.setattr("lifecycle.data.survey.source_size.READ_AT_MOST", 400_000)
    guess = survey(look_at({"s": spec}, root=None, cache=tmp_path), tokenizer=None)[0].tokens
    assert true is not None and guess == pytest.approx(true, rel=0.1)


def test_a_stream_far_behind_is_read_for_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_reader, "MOST_WAITING", 2)
    one = source(tmp_path / "data", [400, 31], max_epochs=1)
    documents = opened(one, [0, 1], 2, 20)
    fast = []
    for _ in range(190):
        fast.append(int(ids_of(documents[1].next())[0]))
    waiting = documents[1]._reader._waiting
    assert len(waiting[0]) == 2
    rest = take_all(documents, np.random.default_rng(0))
    assert sorted(rest[0] + fast + rest[1]) == list(range(431))


def test_files_are_in_another_order_in_every_pass_whatever_is_left_out(tmp_path: Path) -> None:
    sizes = [20] * 12
    plain = source(tmp_path / "data", sizes)
    gone = replace(plain, left_out={"exact duplicate": np.array([7])})
    limited = replace(plain, spec=replace(plain.spec, max_rows=10**9))
    for one in (plain, gone, limited):
        rows = take_all(opened(one, [0], 1, 10), np.random.default_rng(0))[0]
        half = len(rows) // 2
        orders = [[row // 20 for row in rows[begin : begin + half : 10]] for begin in (0, half)]
        assert orders[0] != orders[1]
        assert all(order != sorted(order) for order in orders)


@pytest.mark.parametrize("rows", [16, 17, 32])
def test_a_stream_meets_other_rows_in_every_pass(tmp_path: Path, rows: int) -> None:
    one = source(tmp_path / "data", [rows], max_epochs=60)
    given = take_all(opened(one, list(range(16)), 16, 10_000), np.random.default_rng(0))
    assert all(len(set(own)) > rows // 2 for own in given.values())


def test_a_source_as_small_as_its_streams_can_hold_rows_out(tmp_path: Path) -> None:
    for seed in range(20):
        one = source(tmp_path / "data", [16], max_epochs=None, held_out=HeldOut(ratio=0.1, seed=seed))
        held = [n for n in range(16) if HeldOut(ratio=0.1, seed=seed).holds(f"row {n}")]
        streams = opened(one, list(range(16)), 16, 10_000)
        given = Counter(int(ids_of(documents.next())[0]) for documents in streams.values() for _ in range(30))
        assert set(given) == set(range(16)) - set(held)
    nothing = replace(one, held_out=HeldOut(ratio=1.0, seed=0))
    with pytest.raises(UserError, match=r"no usable training row in 1 file\(s\) \(held:out 1\)"):
        opened(nothing, [4], 16, 10_000)[4].next()


def test_rows_are_judged_by_the_stream_that_they_are_dealt_to_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered: list[int] = []

    def counting(raw: Any, one: Source) -> Any:
        filtered.append(raw.ordinal)
        return filter_row(raw, one)

    monkeypatch.setattr("lifecycle.data.stream.documents.filter_row", counting)
    one = source(tmp_path / "data", [160], max_epochs=1)
    given = take_all(opened(one, [2, 5], 16, 40), np.random.default_rng(0))
    assert sorted(filtered) == sorted(given[2] + given[5]) and len(filtered) == 20


def test_verdict_names_are_those_that_has_usable_looks_for(tmp_path: Path) -> None:
    one = source(tmp_path / "data", [4], held_out=HeldOut(ratio=0.0, seed=0))
    reader = SourceReader(one, at={0: START}, streams=1, seed=0, buffer=10)
    assert reader.has_usable(held=False) and not reader.has_usable(held=True)
    reader = SourceReader(
        replace(one, held_out=HeldOut(ratio=1.0, seed=0)), at={0: START}, streams=1, seed=0, buffer=10
    )
    assert reader.has_usable(held=True) and not reader.has_usable(held=False)
    assert HELD_OUT == "held:out"
