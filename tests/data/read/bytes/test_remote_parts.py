"""Laws of the cache of remote parts: the bytes are those of the file, and each is fetched about once a machine."""

import errno
import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.counted import Counted, Streaming

from lifecycle.data.read.bytes import stored
from lifecycle.data.read.bytes.remote_parts import LOOK_EVERY, Parts
from lifecycle.data.read.bytes.stored import PartedFile, open_stored
from lifecycle.data.read.files.kinds import Kind
from lifecycle.data.read.files.listing import File
from lifecycle.data.read.files.retrying import Retry, open_retrying
from lifecycle.data.read.rows.readers import Position, parse, rows

DICE = random.Random(7)
CONTENT = DICE.randbytes(100_000)


@pytest.fixture(autouse=True)
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    for one in (Counted, Streaming):
        fsspec.register_implementation(one.protocol, one, clobber=True)
    Counted.fetched.clear()
    yield


def put(folder: Path, name: str, content: bytes, kind: Kind = "jsonl", protocol: str = "counted") -> File:
    (folder / name).write_bytes(content)
    return File(f"{protocol}://{folder / name}", len(content), kind, stamp="1")


def cut(file: File, folder: Path, part_bytes: int = 1000) -> PartedFile:
    return PartedFile(file, Parts(folder), part_bytes=part_bytes)


def test_any_reads_give_the_bytes_of_the_file(tmp_path: Path) -> None:
    file = put(tmp_path, "a", CONTENT)
    for part_bytes in (999, 1000, 100_000, 200_000):
        with cut(file, tmp_path / "parts", part_bytes) as raw:
            assert raw.size() == len(CONTENT)
            for _ in range(50):
                start, size = DICE.randrange(100_001), DICE.randrange(5000)
                assert raw.seek(start) == start
                assert raw.read(size) == CONTENT[start : start + size] and raw.tell() == min(start + size, 100_000)
            assert raw.seek(-10, os.SEEK_END) == 99_990 and raw.read() == CONTENT[-10:] and raw.read(5) == b""
            raw.seek(0)
            assert raw.readall() == CONTENT


def test_a_byte_is_fetched_once_by_however_many_readers(tmp_path: Path) -> None:
    file = put(tmp_path, "a", CONTENT)
    for _ in range(3):
        with cut(file, tmp_path / "parts") as one, cut(file, tmp_path / "parts") as other:
            assert one.read(50_000) + other.read(100)[:0] + one.read() == CONTENT
            assert other.read() == CONTENT[100:]
    assert sum(Counted.fetched) == len(CONTENT)


def test_another_size_stamp_or_address_is_another_file(tmp_path: Path) -> None:
    first = put(tmp_path, "a", CONTENT)
    cut(first, tmp_path / "parts").read()
    changed = put(tmp_path, "a", CONTENT[::-1])
    assert cut(first, tmp_path / "parts").read() == CONTENT
    assert cut(File(changed.url, changed.size, "jsonl", stamp="2"), tmp_path / "parts").read() == CONTENT[::-1]
    assert cut(put(tmp_path, "b", CONTENT[:500]), tmp_path / "parts").read() == CONTENT[:500]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_the_passes_of_many_readers_and_a_resume_fetch_a_corpus_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "PART_BYTES", 5000)
    texts = [f"{n} {DICE.random()}" for n in range(3000)]
    body = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": texts}), tmp_path / "t", row_group_size=300)
        body = (tmp_path / "t").read_bytes()
    body = gzip.compress(body) if name.endswith(".gz") else body
    file = put(tmp_path, name, body, "parquet" if name.endswith(".parquet") else "jsonl")
    for reader in range(4):
        got = list(rows([file], Position(0, 0, 0), wanted=lambda n, k=reader: n % 4 == k))  # type: ignore[misc]
        assert [parse(raw)["text"] for raw in got] == texts[reader::4]
        rest = rows([file], got[500].next, wanted=lambda n, k=reader: n % 4 == k)  # type: ignore[misc]
        assert list(rest) == got[501:]
    assert sum(Counted.fetched) == file.size


def test_a_file_that_cannot_be_known_is_read_without_parts(tmp_path: Path) -> None:
    known = put(tmp_path, "a", CONTENT)
    assert isinstance(open_stored(known), PartedFile)
    for file in (
        File(known.url, 0, "jsonl", stamp="1"),
        File(known.url, known.size, "jsonl"),
        File(__file__, 1, "line"),
    ):
        with open_stored(file) as raw:
            assert not isinstance(raw, PartedFile) and len(raw.read(7)) == 7


def test_parts_that_were_damaged_are_fetched_again(tmp_path: Path) -> None:
    file = put(tmp_path, "a", CONTENT)
    cut(file, tmp_path / "parts").read()
    parts = sorted((tmp_path / "parts").glob("*.part"))
    for n, damage in enumerate((b"", b"x" * 1016, parts[2].read_bytes()[:-1], parts[3].read_bytes() + b"x")):
        parts[n].write_bytes(damage)
    parts[4].unlink()
    Counted.fetched.clear()
    assert cut(file, tmp_path / "parts").read() == CONTENT
    assert sum(Counted.fetched) == 5000


def test_the_parts_keep_within_their_room_and_the_last_used_stay(tmp_path: Path) -> None:
    parts = Parts(tmp_path, most_bytes=20_000)
    content = {f"{n:03d}": DICE.randbytes(1000) for n in range(3 * LOOK_EVERY)}
    for n, (name, one) in enumerate(content.items()):
        assert parts.part(name, 1000, lambda one=one: one) == one  # type: ignore[misc]
        os.utime(tmp_path / f"{name}.part", (n, n))
        assert parts.part("000", 1000, lambda: content["000"]) == content["000"]
    left = sorted(path.stem for path in tmp_path.glob("*.part"))
    assert "000" in left and left[-1] == f"{len(content) - 1:03d}"
    assert len(left) <= 20 + LOOK_EVERY and not {"001", "002"} & set(left)


def test_a_disk_that_cannot_keep_parts_costs_a_line_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = put(tmp_path, "a", CONTENT)
    (tmp_path / "no_folder").write_text("a file")
    assert cut(file, tmp_path / "no_folder").read() == CONTENT
    [line] = capsys.readouterr().err.splitlines()
    assert "no_folder" in line and "fetched again" in line

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert cut(file, tmp_path / "full").read() == CONTENT
    [line] = capsys.readouterr().err.splitlines()
    assert "No space left" in line
    assert not [path for path in (tmp_path / "full").iterdir() if path.suffix != ".lock"]
    assert sum(Counted.fetched) == 2 * len(CONTENT)


def test_processes_share_the_parts(tmp_path: Path) -> None:
    file = put(tmp_path, "a", CONTENT)
    code = (
        "import sys, os, json; from tests.data.counted import read_whole\n"
        "print(json.dumps(read_whole(sys.argv[1], int(sys.argv[2]), sys.argv[3])))"
    )
    command = [sys.executable, "-c", code, file.url, str(file.size), str(tmp_path / "parts")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    found: list[Any] = [json.loads(process.communicate()[0]) for process in running]
    assert {one["sum"] for one in found} == {sum(CONTENT)}
    assert sum(one["fetched"] for one in found) == len(CONTENT)


def test_a_server_that_gives_files_from_their_start_only_is_read_from_any_byte(tmp_path: Path) -> None:
    file = put(tmp_path, "a", CONTENT, protocol="streaming")
    with open_retrying(file.url, 60_000, size=file.size, retry=Retry(attempts=1)) as raw:
        assert raw.read(10) == CONTENT[60_000:60_010]
        assert raw.seek(5) == 5 and raw.read(5) == CONTENT[5:10]
