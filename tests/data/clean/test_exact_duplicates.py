"""Laws of exact duplicates: all but the first of equal texts, wherever they lie, found once and then remembered."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from lifecycle.data.clean import cached_scan, exact_duplicates, scan
from lifecycle.data.clean.exact_duplicates import duplicate_rows, repeated
from lifecycle.data.clean.source import BadRows, Source
from lifecycle.data.read.files.listing import File, resolve
from lifecycle.data.read.row import RawRow
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError


def write(path: Path, rows: list[Any]) -> None:
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else orjson.dumps(row) for row in rows))


def source(folder: Path, spec: SourceSpec) -> Source:
    files = resolve(spec, name="mine", root=str(folder), cache=folder / "cache")
    return Source(name="mine", index=0, spec=spec, files=files, bad_rows=BadRows(max_share=1, min_rows=1))


def found(folder: Path, spec: SourceSpec, processes: int = 1) -> list[int]:
    return duplicate_rows(source(folder, spec), cache=folder / "cache", processes=processes).tolist()


def test_all_but_the_first_of_equal_texts_are_named_by_their_number(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "y"}, b"{broken", {"text": "x", "id": 7}, {"text": "x "}])
    write(tmp_path / "b.jsonl", [b"{broken", {"text": "y"}, {"text": "z"}, {"text": "x"}])
    assert found(tmp_path, SourceSpec(path="*.jsonl")) == [3, 6, 8]


def test_a_source_without_duplicates_or_without_rows_has_none(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "y"}])
    write(tmp_path / "b.jsonl", [])
    assert found(tmp_path, SourceSpec(path="a.jsonl")) == []
    assert found(tmp_path, SourceSpec(path="b.jsonl")) == []


def test_it_agrees_with_a_set_on_many_rows(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in np.random.default_rng(3).integers(0, 1500, 4000)]
    write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    seen: set[str] = set()
    expected = [n for n, text in enumerate(texts) if text in seen or seen.add(text)]  # type: ignore[func-returns-value]
    assert found(tmp_path, SourceSpec(path="a.jsonl")) == expected


def test_what_is_compared_is_the_text_that_is_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"head": "p", "body": "x"}, {"head": "q", "body": "x"}, {"head": "p", "body": "x"}])
    assert found(tmp_path, SourceSpec(path="a.jsonl", fields={"text": "body"})) == [1, 2]
    assert found(tmp_path, SourceSpec(path="a.jsonl", fields={"text": "body", "title": "head"})) == [2]


def test_the_scan_is_kept_until_the_files_change(tmp_path: Path) -> None:
    path, spec = tmp_path / "a.jsonl", SourceSpec(path="a.jsonl")
    write(path, [{"text": "x"}, {"text": "x"}])
    assert found(tmp_path, spec) == [1]
    [kept] = (tmp_path / "cache" / "duplicates").glob("*.npy")
    np.save(kept, np.array([77]))
    assert found(tmp_path, spec) == [77]
    write(path, [{"text": "x"}, {"text": "y"}, {"text": "y"}])
    assert found(tmp_path, spec) == [2]


def test_rows_beyond_the_limit_are_not_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "x"}, {"text": "x"}])
    assert found(tmp_path, SourceSpec(path="a.jsonl", max_rows=2)) == [1]
    assert found(tmp_path, SourceSpec(path="a.jsonl")) == [1, 2]


def test_any_number_of_processes_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "ROWS_AT_ONCE", 7)
    write(tmp_path / "a.jsonl", [{"text": f"text {n % 80}"} for n in range(200)])
    assert found(tmp_path, SourceSpec(path="a.jsonl"), processes=2) == list(range(80, 200))


def test_equal_halves_of_digests_are_no_duplicates_and_equal_digests_are() -> None:
    rows = np.array([3, 5, 6, 8, 9, 12])
    digests = np.array([[1, 2], [1, 3], [2, 2], [1, 2], [1, 2], [2, 1]], np.uint64)
    assert repeated(rows, digests).tolist() == [8, 9]


def test_a_pass_that_broke_off_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(cached_scan, "KEPT_EVERY", 3)
    write(tmp_path / "a.jsonl", [{"text": f"text {n % 60}"} for n in range(100)])
    spec, seen = SourceSpec(path="a.jsonl"), list[int]()
    real = exact_duplicates._digested

    def breaking(source: Source, raws: list[RawRow]) -> exact_duplicates.Digested:
        seen.extend(raw.ordinal for raw in raws)
        if len(seen) == 40:
            raise KeyboardInterrupt
        return real(source, raws)

    monkeypatch.setattr(exact_duplicates, "_digested", breaking)
    with pytest.raises(KeyboardInterrupt):
        found(tmp_path, spec)
    assert found(tmp_path, spec) == list(range(60, 100))
    assert seen[40:] == list(range(30, 100))  # of 35 rows that were done, 6 batches of 5 were noted


def test_remote_files_are_refused_with_the_way_round(tmp_path: Path) -> None:
    files = (File("https://example.org/a.jsonl", 1, "jsonl"),)
    limits = BadRows(max_share=1, min_rows=1)
    far = Source(name="mine", index=0, spec=SourceSpec(path="x"), files=files, bad_rows=limits)
    with pytest.raises(
        UserError, match=r"mine\.filters\.exact_duplicates .*example\.org/a\.jsonl is remote: .*prepare"
    ):
        duplicate_rows(far, cache=tmp_path, processes=1)
