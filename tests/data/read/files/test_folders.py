"""Laws of folders: each real file once, what is no data is passed over, and whatever is passed over is said."""

import gzip
import os
import unicodedata
from pathlib import Path

import fsspec
import pytest

from lifecycle.data.read.files.listing import Listing, listing
from lifecycle.data.read.files.selection import sift
from lifecycle.data.read.rows.first_look import look
from lifecycle.data.read.rows.readers import Position, rows
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError


def find(folder: Path, path: str | list[str], split: str = "train") -> Listing:
    return listing(SourceSpec(path=path, split=split), name="mine", root=str(folder), cache=folder / ".cache")


def names(found: Listing, folder: Path) -> list[str]:
    return [os.path.relpath(file.url, folder) for file in found.files]


def passed(found: Listing, folder: Path) -> dict[str, str]:
    return {os.path.relpath(path, folder): why for path, why in found.passed.items()}


def make(folder: Path, *paths: str, size: int = 10) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x" * size)


def test_a_file_is_read_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    make(tmp_path, "all/v2/a.jsonl", "all/v2/b.jsonl", "other/c.jsonl")
    (tmp_path / "all/latest").symlink_to("v2")
    (tmp_path / "all/v2/loop").symlink_to(".")
    (tmp_path / "all/v2/up").symlink_to("../..")
    (tmp_path / "all/elsewhere").symlink_to(tmp_path / "other")
    (tmp_path / "all/again.jsonl").symlink_to("v2/a.jsonl")
    os.link(tmp_path / "all/v2/b.jsonl", tmp_path / "all/v2/hard.jsonl")
    found = find(tmp_path, "all")
    assert names(found, tmp_path) == ["all/elsewhere/c.jsonl", "all/v2/a.jsonl", "all/v2/b.jsonl"]
    assert passed(found, tmp_path) == {
        "all/latest": "a link to a folder that is read anyway",
        "all/v2/loop": "a link to a folder that is read anyway",
        "all/v2/up": "a link to a folder that is read anyway",
        "all/again.jsonl": "another name of a file that is read",
        "all/v2/hard.jsonl": "another name of a file that is read",
    }
    for pattern in ("all/**", "all/**/*.jsonl", "a*/**/?.jsonl"):
        assert names(find(tmp_path, pattern), tmp_path) == names(found, tmp_path)
    assert names(find(tmp_path, ["all/latest/*.jsonl", "all/v2"]), tmp_path) == names(found, tmp_path)[1:]
    assert names(find(tmp_path, "all/latest"), tmp_path) == ["all/latest/a.jsonl", "all/latest/b.jsonl"]


def test_many_loops_end(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    for n in range(30):
        (tmp_path / f"loop{n}").symlink_to(".")
    assert len(find(tmp_path, "**/*.jsonl").files) == 1


def test_patterns_below_any_folder_match_as_in_a_shell(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "x/b.jsonl", "x/y/c.jsonl", "x/y/d.txt", "x[1]/e.jsonl", ".hidden/f.jsonl")
    for pattern, want in {
        "**/*.jsonl": ["a.jsonl", "x/b.jsonl", "x/y/c.jsonl", "x[1]/e.jsonl"],
        "x/**": ["x/b.jsonl", "x/y/c.jsonl", "x/y/d.txt"],
        "**/y/*": ["x/y/c.jsonl", "x/y/d.txt"],
        "**/[!ad].jsonl": ["x/b.jsonl", "x/y/c.jsonl", "x[1]/e.jsonl"],
        "**/[a-b].jsonl": ["a.jsonl", "x/b.jsonl"],
        "**/x[[]1]/*": ["x[1]/e.jsonl"],
        "x[1]/*.jsonl": ["x[1]/e.jsonl"],
    }.items():
        assert names(find(tmp_path, pattern), tmp_path) == want, pattern


def test_a_clone_of_a_data_set_gives_the_files_of_its_split(tmp_path: Path) -> None:
    rows = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    rest = ["data/test-00000-of-00001.parquet", "README.md", "LICENSE", "SHA256SUMS", "_SUCCESS", "dataset_infos.json"]
    make(tmp_path, *rows, *rest, ".gitattributes", ".git/config", "scan.pdf", "data/more.parquet.gz")
    found = find(tmp_path, str(tmp_path))
    assert names(found, tmp_path) == rows
    assert passed(found, tmp_path) == {
        rest[0]: "of another split",
        **dict.fromkeys(rest[1:], "about the data"),
        ".gitattributes": "hidden",
        ".git": "hidden",
        "scan.pdf": ".pdf is not read",
        "data/more.parquet.gz": ".parquet.gz is not read",
    }
    assert str(found).startswith("2 files read: 2 .parquet (20 bytes); passed over: ")
    assert "1 (.pdf is not read: scan.pdf)" in str(found)
    assert names(find(tmp_path, str(tmp_path), split="test"), tmp_path) == rest[:1]
    assert "README.md" in names(find(tmp_path, ["*.md", "data/train*"]), tmp_path)  # named, so meant


def test_a_file_that_is_passed_over_for_its_folder_is_named_with_it(tmp_path: Path) -> None:
    make(tmp_path, "train/data-0.arrow", "test/data-0.arrow", "train/valid.jsonl")
    assert str(find(tmp_path, ".")).endswith("passed over: 2 (of another split: test/data-0.arrow, valid.jsonl)")


@pytest.mark.parametrize(
    ("files", "split", "kept"),
    [
        (["train/a.jsonl", "valid/a.jsonl", "b.jsonl"], "train", ["train/a.jsonl", "b.jsonl"]),
        (["train/a.jsonl", "dev/a.jsonl"], "validation", ["dev/a.jsonl"]),
        (["part-1.jsonl", "test_part.jsonl"], "train", ["part-1.jsonl", "test_part.jsonl"]),  # none names train
        (["train.jsonl", "tests/a.py", "test.txt"], "train", ["train.jsonl", "tests/a.py", "test.txt"]),  # texts
        (["trains.jsonl", "latest.jsonl"], "train", ["trains.jsonl", "latest.jsonl"]),
        (["README.md", "src/a.py"], "train", ["README.md", "src/a.py"]),  # text is the data here
        (["a.jsonl.sha256", "a.jsonl", "md5sums.txt", "x.jsonl.incomplete"], "train", ["a.jsonl"]),
        (["state.json", "a.jsonl"], "train", ["state.json", "a.jsonl"]),
        (["state.json", "dataset_info.json", "data-0.arrow"], "train", ["data-0.arrow"]),
    ],
)
def test_files_of_a_folder_are_sifted_by_their_names(files: list[str], split: str, kept: list[str]) -> None:
    assert sift(dict.fromkeys(files, 10), split)[0] == kept


def test_a_folder_of_a_remote_place_is_sifted_too(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("train.jsonl", "test.jsonl", "README.md", "a.pdf"):
        fs.pipe_file(f"/sifted/{name}", b"{}")
    found = find(tmp_path, "memory://sifted")
    assert [file.url for file in found.files] == ["memory:///sifted/train.jsonl"]
    assert sorted(found.passed.values()) == [".pdf is not read", "about the data", "of another split"]


def test_a_network_that_is_down_is_no_crash(tmp_path: Path) -> None:
    class ConnectError(Exception):
        pass

    class Down(fsspec.AbstractFileSystem):
        def info(self, path: str, **kwargs: object) -> dict[str, object]:
            raise ConnectError("Name or service not known")

    ConnectError.__module__ = "httpx2._exceptions"  # a client's own error, which is no OSError
    fsspec.register_implementation("down", Down, clobber=True)
    with pytest.raises(UserError, match=r"down://x cannot be reached \(ConnectError: Name or service not known\)"):
        find(tmp_path, "down://x")


def test_a_folder_without_anything_that_is_read_says_what_it_holds(tmp_path: Path) -> None:
    make(tmp_path, "scans/a.pdf", "scans/b.pdf", "scans/.c", "deep/er/a.jsonl")
    with pytest.raises(
        UserError, match=r"scans holds nothing that is read: 1 \(hidden: \.c\), 2 \(\.pdf is not read: a"
    ):
        find(tmp_path, "scans")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="the folder .*bare is empty"):
        find(tmp_path, "bare")
    with pytest.raises(UserError, match=r"nothing matches .*deep/\*, but 1 folder\(s\): end it in /\*\*"):
        find(tmp_path, "deep/*")


def test_links_to_nothing_and_what_is_no_file_are_said(tmp_path: Path) -> None:
    make(tmp_path, "in/a.jsonl")
    (tmp_path / "in/gone.jsonl").symlink_to("nowhere")
    os.mkfifo(tmp_path / "in/pipe.jsonl")
    found = find(tmp_path, "in")
    assert passed(found, tmp_path) == {"in/gone.jsonl": "a link to nothing", "in/pipe.jsonl": "not a file"}
    assert passed(find(tmp_path, "in/*.jsonl"), tmp_path) == {"in/gone.jsonl": "a link to nothing"}
    with pytest.raises(UserError, match=r"gone\.jsonl is a link to nowhere, which does not exist"):
        find(tmp_path, "in/gone.jsonl")
    with pytest.raises(UserError, match=r"pipe\.jsonl is no file"):
        find(tmp_path, "in/pipe.jsonl")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_found_in_either_unicode_form(form: str, tmp_path: Path) -> None:
    other = "NFD" if form == "NFC" else "NFC"
    on_disk, typed = (unicodedata.normalize(one, "données/été.jsonl") for one in (form, other))  # type: ignore[arg-type]
    make(tmp_path, on_disk)
    for path in (typed, os.path.dirname(typed), typed.replace(".jsonl", ".*"), typed.replace("donn", "**/donn")):
        assert [unicodedata.normalize(form, name) for name in names(find(tmp_path, path), tmp_path)] == [on_disk]  # type: ignore[arg-type]


def test_what_is_no_data_is_said_before_anything_is_read(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for name, content, message in (
        ("a.parquet", pointer, "is a pointer to the data"),
        ("a.jsonl", pointer, "run `git lfs pull`"),
        ("b.jsonl", b"<!DOCTYPE html><html>", "a web page or an error message"),
        ("c.csv", b"<?xml version='1.0'?><Error>", "a web page or an error message"),
        ("d.jsonl.gz", b'{"text": "unpacked on the way"}', "holds plain text, though its name says gzip"),
        ("e.jsonl", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "holds gzip, which its name does not say"),
        ("f.parquet", b"PAR1 and no end", "is no whole Parquet file"),
        ("g.parquet", b"PK\x03\x04", "holds a zip archive"),
        ("h.txt", "not marked".encode("utf-16-le"), r"is text in UTF-16-LE.*encoding=utf-16-le"),
    ):
        (tmp_path / name).write_bytes(content)
        files = find(tmp_path, name).files
        with pytest.raises(UserError, match=rf"{name}.*{message}"):
            look(files, "error")
    fine = {
        "i.txt": b"PAR1 is a mark",
        "j.html": b"<html>a page as text</html>",
        "k.txt": b"",
        "l.dat": b"PK\x03\x04\0",
    }
    for name, content in fine.items():
        (tmp_path / name).write_bytes(content)
        look(find(tmp_path, name).files, "error")


def test_skipping_a_damaged_file_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.parquet").write_bytes(b"<html>")
    for _ in range(3):
        look(find(tmp_path, "a.parquet").files, "skip")
    [line] = capsys.readouterr().err.splitlines()
    assert "a.parquet holds a web page" in line and "it is passed over" in line


@pytest.mark.parametrize("where", [None, "data.decontaminate.sets.exam"])
def test_what_is_wrong_with_a_file_is_said_of_its_source(tmp_path: Path, where: str | None) -> None:
    source = where or "data.sources.mine"
    for name, content, said in (
        (
            "a.txt",
            "in another way".encode("utf-16"),
            rf"{source}: \S*a.txt is text in UTF-16.*\({source}.encoding=utf-16",
        ),
        (
            "b.csv",
            b"content,url\nx,y\n",
            rf"{source}: \S*b.csv has the columns content, url.*by {source}.fields, such as {{",
        ),
        ("c.csv", b"text,text\nx,y\n", rf"{source}: the header of \S*c.csv has the name 'text' twice"),
        ("d.json", b'{"data": [{"text": "x"}]}', rf"{source}: \S*d.json is one JSON object"),
        ("e.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 999)[:40], rf"{source}: \S*e.jsonl.gz is cut off"),
    ):
        (tmp_path / name).write_bytes(content)
        found = listing(SourceSpec(path=name), name="mine", root=str(tmp_path), cache=tmp_path, where=where).files
        with pytest.raises(UserError, match=said):
            list(rows(found, Position(0, 0, 0), wanted=lambda ordinal: True))
    (tmp_path / "f.csv").write_bytes(b"foo,bar\nx,y\n")
    spec = SourceSpec(path="f.csv", format="auto")
    found = listing(spec, name="mine", root=str(tmp_path), cache=tmp_path, where=where).files
    with pytest.raises(
        UserError, match=rf"such as {source}.format=question_answer '{source}.fields={{question: COLUMN"
    ):
        list(rows(found, Position(0, 0, 0), wanted=lambda ordinal: True))
