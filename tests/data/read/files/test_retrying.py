"""Laws of reading over a bad network: whatever fails and however often, the bytes are those of the file, once each."""

import gzip
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lifecycle.data.read.files.kinds import Kind
from lifecycle.data.read.files.listing import File
from lifecycle.data.read.files.retrying import Retry, open_retrying
from lifecycle.data.read.rows.readers import Position, parse, rows

FAST = Retry(attempts=60, first_s=0.0, most_s=0.0)
FAILURES = (OSError("reset by peer"), TimeoutError("timed out"), ConnectionResetError("gone"))


class Flaky(fsspec.AbstractFileSystem):
    """Fails at random when a file is opened, in the middle of a read (after some bytes), or by ending too early."""

    protocol = "flaky"
    contents: dict[str, bytes] = {}
    dice = random.Random(0)
    share = 0.3
    failed = 0

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.perhaps_fail()
        return Broken(self.contents[path])

    @classmethod
    def perhaps_fail(cls) -> None:
        if cls.dice.random() < cls.share:
            cls.failed += 1
            raise cls.dice.choice(FAILURES)


class Broken:
    """A file that gives some of the bytes asked for, then fails."""

    def __init__(self, content: bytes) -> None:
        self.file = io.BytesIO(content)

    def read(self, size: int) -> bytes:
        Flaky.perhaps_fail()
        if Flaky.dice.random() < 0.1:
            return b""  # a connection that closes early without saying so
        return self.file.read(Flaky.dice.randint(1, size))

    def seek(self, *args: int) -> int:
        return self.file.seek(*args)

    def close(self) -> None:
        if Flaky.dice.random() < 0.3:
            raise OSError("cannot even close")


@pytest.fixture(autouse=True)
def flaky() -> Iterator[None]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.dice, Flaky.share, Flaky.failed = random.Random(3), 0.3, 0
    yield


def put(name: str, content: bytes) -> str:
    Flaky.contents[name] = content
    return f"flaky://{name}"


def test_bytes_are_those_of_the_file_whatever_fails(capsys: pytest.CaptureFixture[str]) -> None:
    content = random.Random(1).randbytes(200_000)
    url = put("x.bin", content)
    with open_retrying(url, size=len(content), retry=FAST) as file:
        got = b""
        while part := file.read(3000):
            got += part
    assert got == content
    assert Flaky.failed > 50
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) >= Flaky.failed and all("attempt" in line and url in line for line in warnings)


def test_reading_starts_at_the_offset_and_seeks() -> None:
    content = random.Random(2).randbytes(50_000)
    with open_retrying(put("x.bin", content), 12_345, size=len(content), retry=FAST) as file:
        assert file.read(100) == content[12_345:12_445]
        file.seek(-10, 2)
        assert file.read() == content[-10:]
        file.seek(7)
        assert file.tell() == 7 and file.read(5) == content[7:12]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_rows_are_neither_lost_nor_repeated(name: str, tmp_path: Path) -> None:
    texts = [f"row {n} " + "y" * (n % 700) for n in range(3000)]
    body = b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)
    kind: Kind = "jsonl"
    if name.endswith(".gz"):
        body = gzip.compress(body)
    elif name.endswith(".zst"):
        body = zstandard.compress(body)
    elif name.endswith(".parquet"):
        pq.write_table(pa.table({"text": texts}), tmp_path / name, row_group_size=400)
        body, kind = (tmp_path / name).read_bytes(), "parquet"
    files = [File(put(name, body), len(body), kind)]
    raws = list(rows(files, Position(0, 0, 0), wanted=lambda ordinal: True, retry=FAST))
    assert [parse(raw)["text"] for raw in raws] == texts
    again = list(rows(files, raws[1234].next, wanted=lambda ordinal: True, retry=FAST))
    assert [parse(raw)["text"] for raw in again] == texts[1235:]
    assert Flaky.failed > 0


def test_a_network_that_stays_down_ends_with_what_to_do() -> None:
    url = put("x.bin", b"abc")
    Flaky.share = 1.0
    with pytest.raises(ConnectionError, match=r"x\.bin: no byte after 3 attempts at byte 0 .* start the run again"):
        open_retrying(url, size=3, retry=Retry(attempts=3, first_s=0.0, most_s=0.0))


def test_a_file_that_is_not_there_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_retrying(str(tmp_path / "none"), retry=Retry(attempts=5, first_s=1000.0))


def test_waits_double_up_to_their_bound_with_jitter() -> None:
    retry = Retry(first_s=1.0, most_s=20.0)
    for attempt, whole in ((1, 1.0), (2, 2.0), (3, 4.0), (5, 16.0), (6, 20.0), (9, 20.0)):
        waits = {retry.wait_s("a", offset, attempt) for offset in range(20)}
        assert len(waits) == 20 and all(whole / 2 <= wait <= whole for wait in waits)
