"""The rows of a source are those of its files up to `max_rows`, whoever asks for which of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from lifecycle.data.clean.row_counts import row_counts
from lifecycle.data.clean.source import BadRows, Source
from lifecycle.data.clean.walk import walk_rows
from lifecycle.data.read.files.listing import resolve
from lifecycle.data.read.spec import SourceSpec


def source(folder: Path, sizes: list[int], **spec: Any) -> Source:
    for number, rows in enumerate(sizes):
        lines = [json.dumps({"text": f"{number} {row}"}) + "\n" for row in range(rows)]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    made = SourceSpec(path="*.jsonl", **spec)
    files = resolve(made, name="s", root=str(folder), cache=folder / "cache")
    return Source(name="s", index=0, spec=made, files=files, bad_rows=BadRows(max_share=0.01, min_rows=10))


@pytest.mark.parametrize("most", [None, 1, 4, 5, 6, 9, 12, 100])
def test_which_rows_are_given_and_where_they_end(tmp_path: Path, most: int | None) -> None:
    made, total = source(tmp_path, [5, 1, 3, 3], max_rows=most), min(most or 12, 12)
    for wanted in (lambda row: True, lambda row: row % 3 == 1, lambda row: False):
        walk = walk_rows(made, wanted=wanted)
        assert [raw.ordinal for raw in walk] == [row for row in range(total) if wanted(row)]
        assert walk.end.row == total
    assert row_counts(made).sum() == total
    assert len(list(walk_rows(made, past_limit=True))) == 12


def test_it_goes_on_from_any_row_also_from_behind_the_limit(tmp_path: Path) -> None:
    made = source(tmp_path, [4, 4], max_rows=6)
    positions = [raw.next for raw in walk_rows(made, past_limit=True)]
    for begin in positions:
        walk = walk_rows(made, begin)
        assert [raw.ordinal for raw in walk] == list(range(begin.row, 6))
        assert walk.end.row == max(begin.row, 6)


def test_nothing_behind_the_limit_is_read_whatever_is_wanted(tmp_path: Path) -> None:
    made = source(tmp_path, [4, 4], max_rows=4)
    (tmp_path / "1.jsonl").unlink()
    assert len(list(walk_rows(made))) == 4
    assert not list(walk_rows(made, wanted=lambda row: row == 7))
    with pytest.raises(FileNotFoundError):
        list(walk_rows(made, past_limit=True))
