"""What stands where a JSON object was expected is called by its name, with its place and what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lifecycle.errors import UserError
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.system.foreign import mistaken_file, read_mapping, read_object

WHOLE = '{"hidden_size": 32, "name": "é"}'
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_read_over(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text(WHOLE, encoding=encoding)
    assert read_object(tmp_path / "a.json") == json.loads(WHOLE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; get the file again"),
        (b" \n\t", "is empty"),
        (POINTER.encode(), "is a Git LFS pointer, not the file itself; type `git lfs pull`"),
        (b"<!DOCTYPE html><html>", "is a web page (of a login, or of an error)"),
        (b"\n<html lang=en>", "is a web page"),
        (WHOLE.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (WHOLE.encode("cp1252"), "line 1: byte 0xe9 is not UTF-8"),
        (b'{"a": 1, // why\n"b": 2}', "line 1, column 10 is a comment, which JSON does not have"),
        (b'{"a": 1,}', "the comma before line 1, column 9 has nothing behind it"),
        (b'{"a": [1, 2,]}', "the comma before line 1, column 13 has nothing behind it"),
        (b'{"a": {"b": 1', 'breaks off at its end (\'{"a": {"b": 1\')'),
        (b'{"a": "b', "breaks off at its end"),
        (b'{"a": tru', "breaks off at its end"),
        (b"{'a': 1}", "at line 1, column 2"),
        (b'{"a": 1} {"b": 2}', "Extra data at line 1, column 10"),
        (b"[1]", "holds a list, wanted an object in braces"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_object_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_object(path)
    assert said in str(caught.value) and str(caught.value).startswith(str(path))


@pytest.mark.parametrize("read", [read_object, mistaken_file])
def test_what_cannot_be_opened_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", '{"data": []}', "run.json: data is [], wanted keys and their values"),
        ("run.json", '{"data": {"config": {"sources": ["a"]}}}', "data.config.sources is ['a'], wanted keys"),
        ("run.json", '{"data": {"config": {"sources": {"a": 1}}}}', "data.config.sources.a is 1, wanted keys"),
        ("run.json", '{"status": "fin', "run.json is not JSON: it breaks off at its end"),
        ("config.yaml", "model: [1]", "config.yaml: model is [1], wanted keys and their values"),
        ("config.yaml", "data: {sources: text}", "data.sources is 'text', wanted keys"),
        ("config.yaml", "a: [1\nb: 2", "config.yaml is not YAML, line 2"),
        ("config.yaml", "- a", "config.yaml holds a list, wanted keys and their values"),
        ("config.yaml", "!!python/object/apply:os.getcwd []", "config.yaml is not YAML, line 1"),
    ],
)
def test_a_runs_files_that_are_none_are_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    run = RunFolder(tmp_path)
    with pytest.raises(UserError) as caught:
        run.lineage() if name == "run.json" else run.config()
    assert said in str(caught.value)


def test_what_a_run_writes_is_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.lineage() == {} and run.config() is None
    run.update(parent=None, data={"config": {"sources": {"a": {"path": "x"}}, "decontaminate": None}})
    run.write_config({"model": {"layers": 1}, "stage": None})
    assert run.lineage()["data"]["config"]["sources"] == {"a": {"path": "x"}}
    assert run.config() == read_mapping(tmp_path / "config.yaml") == {"model": {"layers": 1}, "stage": None}
