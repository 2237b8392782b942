"""Laws of near duplicates: the first in order stays, within a source and across sources, however the scan is run."""

import gzip
import json
import multiprocessing as mp
import os
import random
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifecycle.data.clean import cached_scan, near_duplicates, scan
from lifecycle.data.clean.source import BadRows, Source
from lifecycle.data.quality.minhash import signatures
from lifecycle.data.quality.rules import FilterSpec, NearRules
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.documents import RawDocuments
from lifecycle.data.stream.open_sources import open_sources
from lifecycle.data.stream.source_reader import START, SourceReader
from lifecycle.errors import UserError

WORDS = [f"word{n}" for n in range(3000)]
NEAR = FilterSpec(near_duplicates=True)


def document(seed: int, length: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def edited(text: str, edits: int) -> str:
    """The text with its first `edits` words replaced: edits + 4 of its n-grams of 5 words are others."""
    parts = text.split()
    return " ".join([f"new{n}" for n in range(edits)] + parts[edits:]).upper()


def write(path: Path, texts: list[str]) -> str:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)


def opened(folder: Path, specs: dict[str, SourceSpec], processes: int = 1) -> dict[str, Source]:
    sources = open_sources(
        specs,
        root=str(folder),
        bad_rows=BadRows(max_share=0.5, min_rows=10),
        cache=folder / "cache",
        quarantine=None,
        processes=processes,
    )
    return {source.name: source for source in sources}


def left_out(source: Source) -> list[int]:
    return source.left_out.get("near duplicate", np.zeros(0, np.int64)).tolist()


def test_rows_that_resemble_an_earlier_one_go_and_others_stay(tmp_path: Path) -> None:
    a, b = document(1), document(2)
    # 196 n-grams each; with 4 edits 8 of them are others: J = 188 / 204 = 0.92; with 60: 132 / 260 = 0.51.
    write(tmp_path / "a.jsonl", [a, b, edited(a, 4), edited(a, 60), document(3), b, "word1"])
    found = opened(tmp_path, {"mine": SourceSpec(path="a.jsonl", filters=NEAR)})["mine"]
    assert left_out(found) == [2, 5]
    assert found.left_out_counts == {"dropped:near duplicate": 2}


def test_the_source_named_first_keeps_its_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [document(n) for n in range(30)])
    write(tmp_path / "b.jsonl", [document(100), *(edited(document(n), 2) for n in (29, 5)), document(101)])
    specs = {n: SourceSpec(path=f"{n}.jsonl", filters=NEAR) for n in ("a", "b")}
    forward, backward = opened(tmp_path, specs), opened(tmp_path, dict(reversed(specs.items())))
    assert [left_out(forward[n]) for n in ("a", "b")] == [[], [1, 2]]
    assert [left_out(backward[n]) for n in ("a", "b")] == [[5, 29], []]


def test_a_source_without_the_filter_is_neither_cleaned_nor_compared_with(tmp_path: Path) -> None:
    texts = [document(1), document(1)]
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", texts)
    specs = {"a": SourceSpec(path="a.jsonl"), "b": SourceSpec(path="b.jsonl", filters=NEAR)}
    found = opened(tmp_path, specs)
    assert [left_out(found[n]) for n in ("a", "b")] == [[], [1]]


def test_rows_that_a_filter_drops_take_no_other_with_them(tmp_path: Path) -> None:
    text = document(1)
    write(tmp_path / "a.jsonl", [text + " longer", text])
    spec = SourceSpec(path="a.jsonl", filters=replace(NEAR, max_chars=len(text)))
    assert left_out(opened(tmp_path, {"a": spec})["a"]) == []


def test_exact_duplicates_are_counted_as_such_and_not_twice(tmp_path: Path) -> None:
    text = document(1)
    write(tmp_path / "a.jsonl", [text, text, edited(text, 2)])
    spec = SourceSpec(path="a.jsonl", filters=replace(NEAR, exact_duplicates=True))
    counts = opened(tmp_path, {"a": spec})["a"].left_out_counts
    assert counts == {"dropped:exact duplicate": 1, "dropped:near duplicate": 1}


def test_any_number_of_processes_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "ROWS_AT_ONCE", 7)
    write(tmp_path / "a.jsonl", [edited(document(n % 80), n % 3) for n in range(200)])
    spec = SourceSpec(path="a.jsonl", filters=NEAR, max_rows=170)
    one = opened(tmp_path, {"a": spec})["a"]
    (tmp_path / "cache").rename(tmp_path / "first")
    two = opened(tmp_path, {"a": spec}, processes=2)["a"]
    assert left_out(one) == left_out(two) == list(range(80, 170))
    assert one.fingerprint == two.fingerprint


def test_processes_begin_clean_of_the_threads_that_this_one_has_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [np.arange(5000, dtype=np.uint64)] * 64  # enough for the library to start threads here
    assert len(signatures(many, 128)) == 64
    monkeypatch.setattr(scan, "ROWS_AT_ONCE", 40)
    write(tmp_path / "a.jsonl", [document(n, 2000) for n in range(100)] * 2)
    spec = SourceSpec(path="a.jsonl", filters=NEAR)
    assert left_out(opened(tmp_path, {"a": spec}, processes=2)["a"]) == list(range(100, 200))


def test_what_was_found_is_kept_and_a_changed_file_is_scanned_anew(tmp_path: Path, monkeypatch: Any) -> None:
    write(tmp_path / "a.jsonl", [document(1), document(1)])
    specs = {"a": SourceSpec(path="a.jsonl", filters=NEAR)}
    before = opened(tmp_path, specs)["a"].fingerprint
    with monkeypatch.context() as patched:
        patched.setattr(cached_scan, "scan", None)  # not called again
        assert opened(tmp_path, specs)["a"].fingerprint == before
        stricter = {"a": SourceSpec(path="a.jsonl", filters=replace(NEAR, near=NearRules(threshold=0.5)))}
        opened(tmp_path, stricter)
    write(tmp_path / "a.jsonl", [document(1), document(2), document(2)])
    assert left_out(opened(tmp_path, specs)["a"]) == [2]


def test_the_fingerprint_depends_on_what_other_sources_take_away(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [document(1)])
    write(tmp_path / "b.jsonl", [document(1), document(2)])
    both = {n: SourceSpec(path=f"{n}.jsonl", filters=NEAR) for n in ("a", "b")}
    alone = opened(tmp_path, {"b": both["b"]})["b"]
    assert alone.fingerprint != opened(tmp_path, both)["b"].fingerprint


def killed(folder: Path, spec: SourceSpec) -> None:
    """A scan that dies after some batches."""
    real = near_duplicates._Sign.__call__
    count = [0]

    def dying(self: Any, source: Source, raws: Any) -> Any:
        count[0] += 1
        if count[0] == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, source, raws)

    near_duplicates._Sign.__call__ = dying  # type: ignore[method-assign]
    opened(folder, {"a": spec})


def test_a_killed_scan_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(cached_scan, "KEPT_EVERY", 3)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps({"text": document(n % 60)}) for n in range(100)).encode()))
    spec = SourceSpec(path="a.jsonl.gz", filters=NEAR)
    process = mp.get_context("fork").Process(target=killed, args=(tmp_path, spec))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    [note] = (tmp_path / "cache" / "signatures").glob("*/progress.json")
    assert json.loads(note.read_text())[::2] == [30, False]  # of 40 rows that were read, 6 batches of 5 were noted
    seen: list[int] = []
    real = near_duplicates._Sign.__call__

    def counting(self: Any, source: Source, raws: Any) -> Any:
        seen.extend(raw.ordinal for raw in raws)
        return real(self, source, raws)

    monkeypatch.setattr(near_duplicates._Sign, "__call__", counting)
    assert left_out(opened(tmp_path, {"a": spec})["a"]) == list(range(60, 100))
    assert seen == list(range(30, 100))


def test_streams_give_the_rows_that_stay_and_count_the_others(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [document(n % 30) for n in range(50)])
    spec = SourceSpec(path="a.jsonl", filters=NEAR, max_epochs=1, validation=None)
    source = opened(tmp_path, {"a": spec})["a"]
    readers = [
        RawDocuments(
            SourceReader(source, at={stream: START}, streams=3, seed=1, buffer=20), lambda texts: [], stream=stream
        )
        for stream in range(3)
    ]
    given = sorted(text for reader in readers for text in reader.texts())
    assert given == sorted(document(n) for n in range(30))
    counts: Counter[str] = sum((Counter(reader.totals()["counts"]) for reader in readers), Counter())
    assert counts == {"kept:": 30, "dropped:near duplicate": 20}


def test_sources_with_other_rules_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [document(1)])
    specs = {
        "a": SourceSpec(path="a.jsonl", filters=NEAR),
        "b": SourceSpec(path="a.jsonl", filters=replace(NEAR, near=NearRules(ngram=4))),
    }
    with pytest.raises(UserError, match=r"sources\.b\.filters\.near differs from data\.sources\.a\.filters\.near"):
        opened(tmp_path, specs)


def test_what_is_replayed_is_compared_within_its_own_generation(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [document(1), document(2), edited(document(1), 2)])
    spec, other = (SourceSpec(path="a.jsonl", filters=replace(NEAR, near=NearRules(ngram=n))) for n in (5, 4))
    specs = {"mine": spec, "replay.mine": other, "replay.more": other, "replay.1.mine": spec}
    found = opened(tmp_path, specs)
    assert [left_out(found[name]) for name in specs] == [[2], [2], [0, 1, 2], [2]]
