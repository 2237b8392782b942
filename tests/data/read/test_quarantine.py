"""Laws of the quarantine: every bad row once, in order, readable by any tool, within a bounded file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lifecycle.data.read.quarantine import compact, quarantine
from lifecycle.data.read.row import Position, RawRow


def bad(line: int, payload: bytes | dict[str, object], file: str = "a.jsonl") -> RawRow:
    return RawRow(line - 1, file, line, payload, Position(0, 0, line))


def entries(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_a_row_is_kept_with_its_file_line_reason_and_first_characters(tmp_path: Path) -> None:
    path = tmp_path / "quarantine" / "a.jsonl"
    quarantine(path, bad(7, b'{"t": "\xff\0\n\x1b[31m' + "é".encode() + b"x" * 1000), "bad utf-8")
    quarantine(path, bad(9, {"text": 5}), "wrong type of text: int")
    first, second = entries(path)
    assert (first["file"], first["line"], first["reason"]) == ("a.jsonl", 7, "bad utf-8")
    shown = str(first["content"])
    assert shown.startswith('{"t": "\\xff\0\n\x1b[31mé') and len(shown) == 200
    assert "\x1b" not in path.read_text()  # a terminal that shows the file is not told to do anything
    assert second == {"file": "a.jsonl", "line": 9, "reason": "wrong type of text: int", "content": "{'text': 5}"}


WRITER = """
import sys
from pathlib import Path
from lifecycle.data.read.quarantine import quarantine
from lifecycle.data.read.row import Position, RawRow
for line in range(1, 501):
    row = RawRow(line - 1, f"{sys.argv[2]}.jsonl", line, b"x" * 300, Position(0, 0, line))
    quarantine(Path(sys.argv[1]), row, "bad json")
"""


def test_processes_that_write_at_once_keep_each_line_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n)]) for n in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert len(entries(path)) == 2000
    assert compact(path) == 2000


def test_compacting_sorts_and_drops_what_was_met_again_and_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for line in (30, 4, 200, 4, 30):
        quarantine(path, bad(line, b"x"), "bad json")
    with path.open("ab") as file:
        file.write(b'{"file": "a.jsonl", "li')
    assert compact(path) == 3
    assert [entry["line"] for entry in entries(path)] == [4, 30, 200]
    assert compact(path) == 3
    assert [found.name for found in tmp_path.iterdir()] == ["a.jsonl"]


def test_nothing_bad_is_nothing_to_compact(tmp_path: Path) -> None:
    assert compact(tmp_path / "none.jsonl") == 0


@pytest.mark.parametrize("most", [1000, 5000])
def test_the_file_stops_growing(most: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for line in range(1, 500):
        quarantine(path, bad(line, b"x" * 100), "bad json", most_bytes=most)
    assert most <= path.stat().st_size < most + 400
    assert len(entries(path)) > 0
