"""Laws of the forms that rows come in: however a file is written, its rows are those of the same table as JSON Lines,
from any position."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard

from lifecycle.data.read.files.kinds import Kind
from lifecycle.data.read.files.listing import File
from lifecycle.data.read.rows.readers import BadRow, Position, RawRow, parse, rows
from lifecycle.errors import UserError

START = Position(0, 0, 0)
Packed = Callable[[bytes], bytes]
PACKERS: dict[str, Packed] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
DICE = random.Random(4)
TABLE = [
    {
        "id": str(n),
        "text": "".join(DICE.choices(['a"', "b,\n", "{[", "]}", "\\", ";", "\t", "é", "語", " x"], k=n % 40 + 1)),
    }
    for n in range(200)
]


def written(path: Path, content: bytes, kind: Kind, encoding: str = "utf-8") -> File:
    packed = PACKERS[path.suffix if path.suffix in PACKERS else ""](content)
    path.write_bytes(packed)
    return File(str(path), len(packed), kind, encoding=encoding)


def read(file: File, at: Position = START, most_bytes: int = 10_000_000) -> list[RawRow]:
    return list(rows([file], at, wanted=lambda ordinal: True, most_bytes=most_bytes))


def outcomes(file: File, most_bytes: int = 10_000_000) -> list[object]:
    return [outcome(raw) for raw in read(file, most_bytes=most_bytes)]


def outcome(raw: RawRow) -> object:
    try:
        return parse(raw)
    except BadRow as bad:
        return bad.reason


def as_csv(delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["id", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(TABLE)
    return out.getvalue().encode()


FORMS: dict[str, tuple[bytes, Kind]] = {
    "array.json": (json.dumps(TABLE).encode(), "jsonl"),
    "pretty.json": (b"\xef\xbb\xbf" + json.dumps(TABLE, indent=2, ensure_ascii=False).encode(), "jsonl"),
    "array.jsonl": (json.dumps(TABLE, indent=1).encode(), "jsonl"),
    "objects.jsonl": ("\n".join(json.dumps(row, indent=4) for row in TABLE).encode(), "jsonl"),
    "lines.jsonl": ("\n".join(json.dumps(row) for row in TABLE).encode(), "jsonl"),
    "comma.csv": (as_csv(","), "csv"),
    "semicolon.csv": (as_csv(";"), "csv"),
    "tab.tsv": (as_csv("\t"), "tsv"),
    "tab.csv": (as_csv("\t"), "csv"),
    "excel.csv": (b"\xef\xbb\xbfsep=;\r\n" + as_csv(";"), "csv"),
    "bar.csv": (b'"sep=|"\n' + as_csv("|"), "csv"),
}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_rows_of_the_table_from_any_position(name: str, packed: str, tmp_path: Path) -> None:
    content, kind = FORMS[name]
    file = written(tmp_path / (name + packed), content, kind)
    whole = read(file)
    assert [parse(raw) for raw in whole] == TABLE
    assert [raw.ordinal for raw in whole] == list(range(len(TABLE)))
    for at in (0, 7, 63, len(TABLE) - 1):
        assert read(file, whole[at].next) == whole[at + 1 :]
    # line numbers are those of an editor
    text = content.decode("utf-8-sig").split("\n")
    assert all(
        json.dumps(TABLE[n]["id"]).strip('"') in "".join(text[raw.line - 1 :][:2]) for n, raw in enumerate(whole)
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "gb18030"])
@pytest.mark.parametrize("name", ["lines.jsonl", "pretty.json", "comma.csv"])
def test_text_of_a_declared_encoding_is_read_as_if_it_were_utf8(name: str, encoding: str, tmp_path: Path) -> None:
    content, kind = FORMS[name]
    file = written(tmp_path / name, content.decode("utf-8-sig").encode(encoding), kind, encoding)
    whole = read(file)
    assert [parse(raw) for raw in whole] == TABLE
    assert read(file, whole[63].next) == whole[64:]


def test_a_byte_that_the_encoding_does_not_have_spoils_its_own_row(tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt", b"caf\xe9\n\x81\nna\xefve", "line", "cp1252")
    assert outcomes(file) == [{"text": "café"}, "bad utf-8", {"text": "naïve"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_in_another_encoding_is_named_where_it_was_not_declared(encoding: str, tmp_path: Path) -> None:
    content = "\n".join(json.dumps({"text": "some text"}) for _ in range(5)).encode(encoding)
    kinds: tuple[Kind, ...] = ("jsonl", "line", "document", "csv")
    for kind in kinds:
        with pytest.raises(UserError, match=rf"is text in {encoding.upper()}.*NAME\.encoding={encoding},"):
            read(written(tmp_path / "a.txt", content, kind))


def test_rows_of_an_array_are_bad_by_themselves(tmp_path: Path) -> None:
    content = b'[{"a": 1}, {"a": x}, 5, "text", null, [{"a": 2}], {"a": "' + b"y" * 3000 + b'"}, {"a": 3}]\n'
    got = outcomes(written(tmp_path / "a.json", content, "jsonl"), most_bytes=1000)
    assert got == [{"a": 1}, "bad json", *["not an object"] * 3, {"a": 2}, "too long", {"a": 3}]


def test_a_long_array_is_not_held_in_memory(tmp_path: Path) -> None:
    content = b'[{"a": 1},\n{"a": "' + b'\\\\\\"' * 3_000_000 + b'"},\n{"a": 2}]'
    got = read(written(tmp_path / "a.json", content, "jsonl"), most_bytes=100_000)
    assert [outcome(raw) for raw in got] == [{"a": 1}, "too long", {"a": 2}]
    assert [raw.line for raw in got] == [1, 2, 3] and len(got[1].payload) <= 400


@pytest.mark.parametrize("content", [b'[{"a": 1}, {"a": 2', b'[{"a": 1}, {"a": 2}', b'{\n "a": 1\n}\n{\n "a": "2\n'])
def test_json_that_breaks_off_is_a_damaged_file(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="breaks off"):
        read(written(tmp_path / "a.json", content, "jsonl"))


@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_that_wraps_the_rows_is_refused_with_the_field_that_holds_them(
    indent: int | None, tmp_path: Path
) -> None:
    content = json.dumps({"version": "1.0", "data": TABLE}, indent=indent).encode()
    file = written(tmp_path / "a.json", content, "jsonl")
    with pytest.raises(UserError, match=r"whose field 'data' holds the rows.*jq -c '\.\[\"data\"\]\[\]'"):
        read(file)
    talk = json.dumps({"id": "1", "messages": [{"role": "user", "content": "x"}]}, indent=indent).encode()
    own = File(written(tmp_path / "b.json", talk, "jsonl").url, 1, "jsonl", columns=("messages",))
    assert len(read(own)) == 1
    late = json.dumps({"parts": [{"a": 1}], "text": "comes later"}, indent=indent).encode()
    own = File(written(tmp_path / "c.json", late, "jsonl").url, 1, "jsonl", columns=("text",))
    assert len(read(own)) == 1
    several = File(written(tmp_path / "d.json", talk + b"\n" + talk, "jsonl").url, 1, "jsonl", columns=("text",))
    assert len(read(several)) == 2


def test_csv_rows_are_bad_by_themselves(tmp_path: Path) -> None:
    content = b'text,n\r\none,1\r\n\r\n"two\r\nlines",2\r\nthree\r\nfour,4,4\r\n\xff,5\r\n"six,6\r\nseven,7\r\n'
    got = read(written(tmp_path / "a.csv", content, "csv"))
    assert [outcome(raw) for raw in got] == [
        {"text": "one", "n": "1"},
        "empty",
        {"text": "two\r\nlines", "n": "2"},
        "other fields than the header",
        "other fields than the header",
        "bad utf-8",
        "quote without an end",
        {"text": "seven", "n": "7"},
    ]
    assert [raw.line for raw in got] == [2, 3, 4, 6, 7, 8, 9, 10]
    for at in range(len(got)):
        assert read(File(got[0].file, 1, "csv"), got[at].next) == got[at + 1 :]


def test_a_csv_without_the_columns_that_are_read_names_those_it_has(tmp_path: Path) -> None:
    url = written(tmp_path / "a.csv", b"content,url\nx,y\n", "csv").url
    with pytest.raises(UserError, match=r"has the columns content, url, none of which is read \(text\).*fields"):
        read(File(url, 1, "csv", columns=("text",)))
    url = written(tmp_path / "b.csv", b"text,text\nx,y\n", "csv").url
    with pytest.raises(UserError, match="has the name 'text' twice"):
        read(File(url, 1, "csv", columns=("text",)))
    assert outcomes(written(tmp_path / "c.csv", b"", "csv")) == []


def test_a_long_field_of_a_csv_is_passed_over(tmp_path: Path) -> None:
    content = b"text\nfirst\n" + b"x" * 3000 + b"\nlast\n" + b'"' + b"y" * 400_000 + b'"\n'
    assert outcomes(written(tmp_path / "a.csv", content, "csv"), most_bytes=1000) == [
        {"text": "first"},
        "too long",
        {"text": "last"},
        "too long",
    ]
    assert outcomes(written(tmp_path / "a.csv", content, "csv"))[-1] == {"text": "y" * 400_000}


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_files_give_their_rows_from_any_position(form: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(TABLE)
    path = tmp_path / "data-00000-of-00001.arrow"
    new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with new(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=30)
    file = File(str(path), path.stat().st_size, "arrow", columns=("text", "absent"))
    whole = read(file)
    assert [parse(raw) for raw in whole] == [{"text": row["text"]} for row in TABLE]
    for at in (0, 29, 30, 111, 199):
        assert read(file, whole[at].next) == whole[at + 1 :]
    some = list(rows([file], START, wanted=lambda n: n % 50 == 3))
    assert some == [whole[n] for n in (3, 53, 103, 153)]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read as Arrow"):
        read(file)
