"""Laws of the text that Python carries: always the same documents, prose and code apart, valid, and enough of them."""

import ast
import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest

from lifecycle.data.read.files import builtin_text
from lifecycle.data.read.files.listing import resolve
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def documents(kind: str, cache: Path) -> dict[str, str]:
    rows = [orjson.loads(line) for line in builtin_text.materialise(kind, cache).read_bytes().splitlines()]
    made = {row["id"]: row["text"] for row in rows}
    assert len(made) == len(rows)
    return made


def test_there_is_enough_of_both(cache: Path) -> None:
    prose, code = documents("prose", cache), documents("code", cache)
    assert sum(map(len, prose.values())) > 1_500_000 and len(prose) > 300
    assert sum(map(len, code.values())) > 4_000_000 and len(code) > 300
    assert all(len(text) >= builtin_text.LEAST_CHARACTERS for text in [*prose.values(), *code.values()])
    assert "code/json.decoder" in code and "module/json.decoder" in prose
    assert not [name for name in {**prose, **code} if ".test." in name or "idlelib" in name or "site-packages" in name]


def test_code_is_valid_and_has_no_docstrings(cache: Path) -> None:
    for name, text in documents("code", cache).items():
        for node in ast.walk(ast.parse(text, name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert ast.get_docstring(node) is None, f"{name}: {node.name}"


def test_prose_says_no_docstring_twice(cache: Path) -> None:
    parts = Counter(
        part for text in documents("prose", cache).values() for part in text.split("\n\n") if len(part) > 400
    )
    assert sum(n - 1 for n in parts.values()) / len(parts) < 0.02


def test_the_file_is_made_once_and_is_the_same_each_time(cache: Path, tmp_path: Path) -> None:
    path = builtin_text.materialise("prose", cache)
    stamp = path.stat().st_mtime_ns
    assert builtin_text.materialise("prose", cache) == path and path.stat().st_mtime_ns == stamp
    code = (
        "import sys, pathlib; from lifecycle.data.read.files.builtin_text import *; "
        "materialise('prose', pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ | {"PYTHONHASHSEED": "5"})
    [again] = (tmp_path / "python_stdlib").iterdir()
    assert again.name == path.name and again.read_bytes() == path.read_bytes()


def test_a_python_without_its_reference_still_has_docstrings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    sources = {module.__name__: inspect.getsource(module) for module in (inspect, json)}
    monkeypatch.setattr(
        builtin_text, "_modules", lambda: ((name, text, ast.parse(text)) for name, text in sources.items())
    )
    names = list(documents("prose", tmp_path))
    assert "module/json" in names and not any(name.startswith("topic/") for name in names)
    assert "docstrings only" in capsys.readouterr().err


def test_both_are_sources_by_their_address(cache: Path) -> None:
    [file] = resolve(SourceSpec(path="python://code"), name="code", cache=cache)
    assert file.kind == "jsonl" and file.url == str(builtin_text.materialise("code", cache))
    with pytest.raises(UserError, match=r"texts are python://prose, python://code"):
        resolve(SourceSpec(path="python://docs"), name="code", cache=cache)
