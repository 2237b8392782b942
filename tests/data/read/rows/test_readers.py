"""Laws of reading rows: the same rows from any position, whoever reads which; broken ones are named."""

import gzip
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lifecycle.data.read.files.kinds import Kind
from lifecycle.data.read.files.listing import File
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.quarantine import compact, quarantine
from lifecycle.data.read.rows.readers import BadRow, Position, RawRow, parse, rows
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError

START = Position(0, 0, 0)


def everything(ordinal: int) -> bool:
    return True


def file(path: Path, content: bytes, kind: Kind = "jsonl") -> File:
    packed = gzip.compress(content) if path.suffix == ".gz" else content
    packed = zstandard.compress(content) if path.suffix == ".zst" else packed
    path.write_bytes(packed)
    return File(str(path), len(packed), kind)


def outcome(raw: RawRow) -> object:
    try:
        return parse(raw)
    except BadRow as bad:
        return bad.reason


def outcomes(files: list[File], position: Position = START, most_bytes: int = 10_000_000) -> list[object]:
    return [outcome(raw) for raw in rows(files, position, wanted=everything, most_bytes=most_bytes)]


def mixed_files(folder: Path) -> list[File]:
    """Files of all kinds with 300 rows in each, some of them broken, blank or with CRLF."""
    lines = []
    for n in range(300):
        good = orjson.dumps({"text": f"r{n} " + "z" * (n * 7 % 500)})
        lines.append([good, b"", b"{broken", b"\xff\xfe{}", good + b"\r"][0 if n % 9 else n % 5])
    body = b"\n".join(lines)
    texts = [f"p{n}" + "q" * n for n in range(300)]
    pq.write_table(pa.table({"text": texts}), folder / "f.parquet", row_group_size=70)
    return [
        file(folder / "a.jsonl", body),
        file(folder / "b.jsonl.gz", body + b"\n"),
        file(folder / "c.jsonl.zst", body),
        file(folder / "d.txt", body, "line"),
        file(folder / "e.txt.gz", b"\n \n\r\n".join(text.encode() for text in texts), "paragraph"),
        File(str(folder / "f.parquet"), 1, "parquet"),
        file(folder / "g.txt", b"one document\n\n", "document"),
    ]


def test_going_on_from_any_row_gives_the_rows_that_follow(tmp_path: Path) -> None:
    files = mixed_files(tmp_path)
    whole = list(rows(files, START, wanted=everything))
    assert len(whole) == 6 * 300 + 1
    assert [raw.ordinal for raw in whole] == list(range(len(whole)))
    for at in range(0, len(whole), 13):
        position = Position(*orjson.loads(orjson.dumps(list(whole[at].next))))  # as a checkpoint stores it
        assert list(rows(files, position, wanted=everything)) == whole[at + 1 :]


def test_streams_that_deal_rows_by_number_read_each_row_once(tmp_path: Path) -> None:
    files = mixed_files(tmp_path)
    whole = list(rows(files, START, wanted=everything))
    dealt = [list(rows(files, START, wanted=lambda n, s=s: n % 7 == s)) for s in range(7)]  # type: ignore[misc]
    assert sorted((raw for part in dealt for raw in part), key=lambda raw: raw.ordinal) == whole


def test_the_end_of_a_pass_tells_how_many_rows_it_had_even_if_none_was_wanted(tmp_path: Path) -> None:
    files = mixed_files(tmp_path)
    generator = rows(files, START, wanted=lambda ordinal: False)
    with pytest.raises(StopIteration) as end:
        next(generator)
    assert end.value.value.row == 6 * 300 + 1
    assert list(rows(files, end.value.value, wanted=everything)) == []


def test_line_numbers_are_those_of_an_editor(tmp_path: Path) -> None:
    one = file(tmp_path / "a.jsonl", b'{"a":1}\n\n{"a":3}\r\n{"a":4}')
    assert [raw.line for raw in rows([one], START, wanted=everything)] == [1, 2, 3, 4]
    two = file(tmp_path / "b.txt", b"\n\none\nstill one\n\n\ntwo\n", "paragraph")
    assert [raw.line for raw in rows([two], START, wanted=everything)] == [3, 7]


def test_line_ends_marks_and_a_missing_last_newline_do_not_matter(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        for content in (b'{"a":1}\n{"a":2}\n', b'\xef\xbb\xbf{"a":1}\r\n{"a":2}\r\n', b'{"a":1}\n{"a":2}'):
            assert outcomes([file(tmp_path / name, content)]) == [{"a": 1}, {"a": 2}]


def test_each_kind_of_broken_row_has_its_reason(tmp_path: Path) -> None:
    lines = {
        b'{"a": 1': "bad json",
        b"{'a': 1}": "bad json",
        b"NaN": "not an object",
        b'{"a": NaN, b": 1}': "bad json",
        b"[" * 5000 + b"]" * 5000: "bad json",
        b'{"a": "\xc3\x28"}': "bad utf-8",
        b'{"a": "x\0y"}': "nul bytes",
        b"[1, 2]": "not an object",
        b"null": "not an object",
        b"  ": "empty",
        b"": "empty",
        b'{"a": "' + b"x" * 2000 + b'"}': "too long",
    }
    got = outcomes([file(tmp_path / "a.jsonl", b"\n".join(lines) + b'\n{"a": 1}')], most_bytes=1000 + 9500)
    assert got[:-1] == [*list(lines.values())[:-1], {"a": "x" * 2000}]
    got = outcomes([file(tmp_path / "a.jsonl", list(lines)[-1] + b'\n{"a": 1}')], most_bytes=1000)
    assert got == ["too long", {"a": 1}]


def test_what_python_pandas_and_datasets_write_is_taken(tmp_path: Path) -> None:
    content = (
        b'{"text": "one", "score": NaN, "most": -Infinity}\n'
        b'{"text": "half \\ud83d of a pair", "tags": ["\\ude00", {"\\ud83d": "\\ud83d\\ude00"}]}\n'
    )
    first, second = outcomes([file(tmp_path / "a.jsonl", content)])
    assert isinstance(first, dict) and first["text"] == "one" and first["most"] == float("-inf")
    assert second == {"text": "half \ufffd of a pair", "tags": ["\ufffd", {"\ufffd": "\U0001f600"}]}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_long_row_is_passed_over_and_the_next_is_whole(name: str, tmp_path: Path) -> None:
    long = b'{"a": "' + b"x" * 5_000_000 + b'"}\n'
    one = file(tmp_path / name, b'{"a": 0}\n' + long + b'{"a": 1}\n' + long.strip())
    got = list(rows([one], START, wanted=everything, most_bytes=100_000))
    assert [outcome(raw) for raw in got] == [{"a": 0}, "too long", {"a": 1}, "too long"]
    assert all(len(raw.payload) <= 400 for raw in got)
    assert list(rows([one], got[1].next, wanted=everything, most_bytes=100_000)) == got[2:]


def test_a_long_row_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as out:
        for _ in range(300):
            out.write(b"x" * 1_000_000)
    code = (
        "import sys, resource\n"
        "from lifecycle.data.read.rows.readers import *; from lifecycle.data.read.files.listing import File\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "[raw] = rows([File(sys.argv[1], 1, 'jsonl')], Position(0, 0, 0), wanted=lambda n: True)\n"
        "print(raw.fault, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    out_ = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    fault, _, grown_kb = out_.rpartition(" ")
    assert fault == "too long"
    assert int(grown_kb) * (1 if sys.platform == "linux" else 1 / 1024) < 60_000


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_compressed_file_that_breaks_off_gives_its_good_rows_and_one_bad(name: str, tmp_path: Path) -> None:
    dice = random.Random(5)
    lines = [orjson.dumps({"n": n, "text": dice.randbytes(60).hex()}) for n in range(5000)]
    one = file(tmp_path / name, b"\n".join(lines))
    for cut in (slice(0, one.size * 2 // 3), slice(0, 0)):
        broken = File(str(tmp_path / f"broken-{name}"), 1, "jsonl")
        Path(broken.url).write_bytes(Path(one.url).read_bytes()[cut])
        after = file(tmp_path / "z.jsonl", b'{"n": -1}')
        got = list(rows([broken, after], START, wanted=everything, on_damage="skip"))
        results = [outcome(raw) for raw in got]
        assert results[-2:] == ["damaged file", {"n": -1}]
        assert results[:-2] == [orjson.loads(line) for line in lines[: len(results) - 2]]
        middle = len(got) // 2
        again = rows([broken, after], got[middle].next, wanted=everything, on_damage="skip")
        assert list(again) == got[middle + 1 :]


def test_files_of_several_gzip_members_and_zstandard_frames_are_read_whole(tmp_path: Path) -> None:
    for name, pack in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(pack(b'{"a":1}\n{"a"') + pack(b":2}\n") + pack(b"") + pack(b'{"a":3}'))
        assert outcomes([File(str(tmp_path / name), 1, "jsonl")]) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_text_is_cut_into_documents_lines_or_paragraphs(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfone\r\ntwo\r\n \r\n\r\nthree\n"
    want: dict[Kind, list[object]] = {
        "document": [{"text": "one\r\ntwo\r\n \r\n\r\nthree\n"}],
        "line": [{"text": "one"}, {"text": "two"}, "empty", "empty", {"text": "three"}],
        "paragraph": [{"text": "one\ntwo"}, {"text": "three"}],
    }
    for kind, expected in want.items():
        assert outcomes([file(tmp_path / "a.txt", content, kind)]) == expected


def test_bad_text_is_named_too(tmp_path: Path) -> None:
    assert outcomes([file(tmp_path / "a.txt", b"a\0b\n\xff\n" + b"x" * 500, "line")], most_bytes=100) == [
        "nul bytes",
        "bad utf-8",
        "too long",
    ]
    assert outcomes([file(tmp_path / "b.txt", b"", "document")]) == ["empty"]
    assert outcomes([file(tmp_path / "c.txt", b"x" * 500, "document")], most_bytes=100) == ["too long"]
    assert outcomes([file(tmp_path / "d.txt", b"a\n\n" + b"x\n" * 500 + b"\nb", "paragraph")], most_bytes=100) == [
        {"text": "a"},
        "too long",
        {"text": "b"},
    ]


def test_parquet_gives_only_the_named_columns_and_reads_only_wanted_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = {"text": [f"t{n}" for n in range(1000)], "other": list(range(1000))}
    pq.write_table(pa.table(table), path, row_group_size=100)
    named = File(str(path), 1, "parquet", columns=("text", "absent"))
    assert outcomes([named])[:2] == [{"text": "t0"}, {"text": "t1"}]
    content = bytearray(path.read_bytes())
    group = pq.ParquetFile(path).metadata.row_group(3).column(0)
    content[group.data_page_offset : group.data_page_offset + group.total_compressed_size] = bytes(
        group.total_compressed_size
    )
    path.write_bytes(content)
    got = [raw for raw in rows([named], START, wanted=lambda n: not 300 <= n < 400)]
    assert [outcome(raw) for raw in got] == [{"text": f"t{n}"} for n in range(1000) if not 300 <= n < 400]
    with pytest.raises(UserError, match=r"row group 4 of 10 \(.*\), after row 300; 100 rows are lost"):
        list(rows([named], START, wanted=lambda n: 290 <= n < 410))
    got = list(rows([named], START, wanted=lambda n: 290 <= n < 410, on_damage="skip"))
    assert [outcome(raw) for raw in got[9:12]] == [{"text": "t299"}, "damaged file", {"text": "t400"}]
    assert list(rows([named], got[10].next, wanted=everything))[0] == got[11]


def test_a_file_that_is_no_parquet_ends_the_run_or_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing else")
    files = [File(str(tmp_path / "a.parquet"), 1, "parquet"), file(tmp_path / "b.jsonl", b"{}")]
    with pytest.raises(UserError, match=r"a\.parquet is no whole Parquet file .*; nothing of it can be read"):
        outcomes(files)
    assert [outcome(raw) for raw in rows(files, START, wanted=everything, on_damage="skip")] == ["damaged file", {}]


def test_parquet_text_that_is_no_utf8_is_bad_row_by_row(tmp_path: Path) -> None:
    binary = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    assert outcomes([File(str(tmp_path / "a.parquet"), 1, "parquet")]) == [
        {"text": "good"},
        "bad utf-8",
        {"text": "fine"},
    ]


def test_a_hundred_thousand_broken_rows_are_counted_and_listed(tmp_path: Path) -> None:
    dice = random.Random(11)
    kinds = {
        "bad json": b'{"text": "no end',
        "bad utf-8": b'{"text": "\xe2\x28\xa1"}',
        "not an object": b'"text"',
        "empty": b"   ",
        "nul bytes": b"\0\0\0\0",
        "missing field text": b'{"texts": "one"}',
        "wrong type of text: int": b'{"text": 5}',
    }
    spec = SourceSpec(path="a.jsonl")
    expected: Counter[str] = Counter()
    with (tmp_path / "a.jsonl").open("wb") as out:
        for n in range(100_000):
            reason = "too long" if n in (777, 50_000, 99_999) else dice.choice([*kinds, "good"])
            expected[reason] += 1
            long = b'{"text": "' + b"x" * 10_000_000 + b'"}' if reason == "too long" else b""
            out.write((long or kinds.get(reason, b'{"text": "fine"}')) + b"\n")
    files = [File(str(tmp_path / "a.jsonl"), 1, "jsonl")]
    counts: Counter[str] = Counter()
    notes = tmp_path / "quarantine" / "a.jsonl"
    for raw in rows(files, START, wanted=everything):
        try:
            to_record(parse(raw), spec=spec, name="a", row_id="")
            counts["good"] += 1
        except BadRow as bad_row:
            counts[bad_row.reason] += 1
            quarantine(notes, raw, bad_row.reason, most_bytes=1 << 30)
    assert counts == expected
    bad = expected.total() - expected["good"]
    assert compact(notes) == bad
    entries = [orjson.loads(line) for line in notes.read_bytes().splitlines()]
    assert Counter(entry["reason"] for entry in entries) == expected - Counter({"good": expected["good"]})
    assert [entry["line"] for entry in entries] == sorted(entry["line"] for entry in entries)
    assert {entry["line"] for entry in entries if entry["reason"] == "too long"} == {778, 50_001, 100_000}
