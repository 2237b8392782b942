"""Laws of exact duplicates: all but the first of equal texts, wherever they lie, found once and then remembered."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from lifecycle.data.duplicates import duplicate_rows
from lifecycle.data.files import File, resolve
from lifecycle.data.specs import SourceSpec
from lifecycle.errors import UserError


def write(path: Path, rows: list[Any]) -> None:
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else orjson.dumps(row) for row in rows))


def found(folder: Path, spec: SourceSpec) -> list[int]:
    files = resolve(spec, name="mine", root=str(folder), cache=folder / "cache")
    return duplicate_rows(files, spec, "mine", folder / "cache").tolist()


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
    [kept] = (tmp_path / "cache" / "duplicates").iterdir()
    np.save(kept, np.array([77]))
    assert found(tmp_path, spec) == [77]
    write(path, [{"text": "x"}, {"text": "y"}, {"text": "y"}])
    assert found(tmp_path, spec) == [2]


def test_remote_files_are_refused_with_the_way_round(tmp_path: Path) -> None:
    files = [File("https://example.org/a.jsonl", 1, "jsonl")]
    with pytest.raises(
        UserError, match=r"mine\.filters\.exact_duplicates .*example\.org/a\.jsonl is remote: .*prepare"
    ):
        duplicate_rows(files, SourceSpec(path="x"), "mine", tmp_path)
