"""What stands where a JSON object was expected is called by its name, with its place and what to do."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lifecycle.errors import UserError
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.system.foreign import check_text, mistaken_file, read_mapping, read_object, text_of

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


def module_of(folder: Path, name: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What `text_of` says of a function `mark` in module `name` among these files, as they are when it is called."""
    for place, text in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    for known in [one for one in sys.modules if one.split(".")[0] in {"own_marks", "own_parts", "own_pack"}]:
        monkeypatch.delitem(sys.modules, known)
    mark = importlib.import_module(name).mark
    return lambda: str(text_of(mark))


FILES = {
    "own_marks.py": "import own_parts.words\ndef mark(c, r):\n    from own_later import x\n    return 1\n",
    "own_parts/__init__.py": "",
    "own_parts/words.py": "from . import deep\nimport json\n",
    "own_parts/deep.py": "LIMIT = 3\n",
    "own_later.py": "this is no Python\n",
    "own_other.py": "",
}


def test_a_function_has_another_text_where_a_file_beside_it_has_that_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = module_of(tmp_path, "own_marks", FILES, monkeypatch)
    seen = [text()]
    (tmp_path / "own_other.py").write_text("x = 1\n")  # which nobody imports
    assert text() == seen[0]
    for name in ("own_marks.py", "own_parts/deep.py", "own_later.py", "own_parts/__init__.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "# another\n")
        assert text() not in seen
        seen.append(text())


def test_a_module_of_a_package_is_found_from_its_root_and_of_an_installed_one_its_own_files_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"own_pack/__init__.py": "", "own_pack/sub/marks.py": "", "own_pack/words.py": "", "own_parts.py": ""}
    files["own_pack/sub/marks.py"] = "from ..words import *\nimport own_parts\ndef mark(c, r): ...\n"
    for folder, counts in ((tmp_path / "here", True), (tmp_path / "site-packages", False)):
        text = module_of(folder, "own_pack.sub.marks", files, monkeypatch)
        before = text()
        (folder / "own_pack/words.py").write_text("x = 1\n")
        between = text()
        (folder / "own_parts.py").write_text("x = 1\n")
        assert before != between and (text() != between) == counts


def test_a_text_of_an_older_version_is_compared_with_the_file_alone() -> None:
    check_text("a", "a:b", of="it", does="gives")
    check_text("a", "a", of="it", does="gives")
    for then, now in (("a", "b:c"), ("a:b", "a"), ("a:b", "a:c"), (None, "a"), ("a", None)):
        with pytest.raises(UserError, match="has changed since this checkpoint, or one beside it that it imports"):
            check_text(then, now, of="it", does="gives")
