"""Text that every Python installation carries: its language reference and docstrings, its source code, exercises, and
questions about it.

`prose`: each topic of the language reference (`pydoc_data.topics`), and the docstrings of each module of the standard
library and of the interpreter's built-in modules, a module a document. `code`: the source files of the standard
library, without their docstrings: those are in `prose`, and what is held out of one domain must not be trained on in
the other.
Sources are parsed, not imported. The exercises are generated (`exercises.py`), and so are the questions, whose answers
Python computes (`questions/`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import io
import os
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import orjson

from lifecycle.data.read.files import exercises
from lifecycle.data.read.files.questions import calculations, expressions, python_questions
from lifecycle.data.read.files.questions.python_questions import Signature

KINDS = ("prose", "code", *exercises.KINDS, *python_questions.KINDS, *expressions.KINDS, *calculations.KINDS)
LEAST_CHARACTERS = 200
"""A shorter text is no document."""

SKIPPED = frozenset(
    (
        "test tests idlelib lib2to3 site-packages dist-packages turtledemo ensurepip pydoc_data "
        "__pycache__ __phello__ encodings"
    ).split()
)
"""Folders without text of their own: tests, bundled packages, generated tables (`encodings` is 120 character maps)."""

RECIPE = "2"
VERSION = f"{sys.implementation.name}-{sys.version.split()[0]}-{RECIPE}"
"""What the texts depend on: the interpreter's version, and the recipe of this module."""


def materialise(kind: str, cache: Path) -> Path:
    """The documents of `kind` as a JSON Lines file under `cache` ({"id", "text"} a line; exercises have fields of their
    own), written once per version."""
    build = hashlib.sha256(sys.version.encode()).hexdigest()[:8]
    path = cache / "python_stdlib" / f"{kind}-{VERSION}-{build}.jsonl"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        for row in _rows(kind):
            file.write(orjson.dumps(row) + b"\n")
    aside.replace(path)
    return path


def _rows(kind: str) -> Iterator[Mapping[str, object]]:
    if kind in exercises.KINDS:
        yield from exercises.exercises(kind)
        return
    if kind in python_questions.KINDS:
        yield from python_questions.python_questions(kind, list(_signatures()))
        return
    if kind in expressions.KINDS:
        yield from expressions.expressions(kind, _asked())
        return
    if kind in calculations.KINDS:
        yield from calculations.calculations(kind)
        return
    for name, text in _prose() if kind == "prose" else _code():
        if len(text) >= LEAST_CHARACTERS:
            yield {"id": name, "text": text}


def _asked() -> set[str]:
    """All questions of `python_questions`."""
    signatures = list(_signatures())
    pairs = [row["prompt"] for row in python_questions.python_questions("preferences", signatures)]
    turns = [row["messages"] for row in python_questions.python_questions("questions", signatures)]
    return {*pairs, *(asked["content"] for asked, _ in turns)}


def _prose() -> Iterator[tuple[str, str]]:
    """(name, text) of the topics, then of the modules; a docstring that came before is left out."""
    seen: set[str] = set()
    yield from _topics()
    for name, _, tree in _modules():
        yield f"module/{name}", _document(name, _docstrings(name, tree), seen)
    for name in sorted(sys.builtin_module_names):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a module that a later Python has not
            module = importlib.import_module(name)
        yield f"builtin/{name}", _document(name, _builtin_docs(module), seen)


def _topics() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        sys.stderr.write("warning: this Python carries no language reference (pydoc_data.topics): docstrings only\n")
        return
    for name in _without_extracts(topics):
        yield f"topic/{name}", topics[name].strip() + "\n"


def _without_extracts(topics: Mapping[str, str]) -> list[str]:
    """Names of the topics, without those of which half or more stands in longer ones.

    The reference repeats sections as topics of their own; one held out must not be trained on inside another.
    """
    seen: set[str] = set()
    kept = []
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [" ".join(part.split()) for part in topics[name].split("\n\n")]
        repeated = sum(len(part) for part in paragraphs if part in seen)
        if repeated < 0.5 * sum(map(len, paragraphs)):
            seen.update(paragraphs)
            kept.append(name)
    return sorted(kept)


def _code() -> Iterator[tuple[str, str]]:
    for name, source, tree in _modules():
        yield f"code/{name}", _without_docstrings(source, tree)


def _modules() -> Iterator[tuple[str, str, ast.Module]]:
    """(dotted name, source, tree) of the standard library's modules in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in root.rglob("*.py") if not SKIPPED.intersection(path.relative_to(root).parts)]
    names = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    for name in sorted(names):
        with tokenize.open(names[name]) as file:
            source = file.read()
        yield name, source, ast.parse(source)


def _signatures() -> Iterator[Signature]:
    """Public functions of the standard library's modules that have one to five parameters, and no others than such."""
    for module, _, tree in _modules():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                taken = node.args
                plain = not (taken.vararg or taken.kwarg or taken.kwonlyargs or taken.posonlyargs)
                if plain and 1 <= len(taken.args) <= 5:
                    yield Signature(module, node.name, [one.arg for one in taken.args])


def _document(title: str, parts: Iterator[tuple[str, str]], seen: set[str]) -> str:
    lines = [title]
    for heading, docs in parts:
        if docs not in seen:
            seen.add(docs)
            lines.append(f"{heading}\n\n{docs}" if heading else docs)
    return "\n\n".join(lines) + "\n" if len(lines) > 1 else ""


def _docstrings(prefix: str, node: ast.Module | ast.ClassDef, inside: str = "") -> Iterator[tuple[str, str]]:
    """(signature, docstring) of a module or class and of what it defines, in the order of the source."""
    if not inside and (docs := ast.get_docstring(node)):
        yield "", docs.strip()
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{inside}.{child.name}" if inside else child.name
            if docs := ast.get_docstring(child):
                shown = f"class {name}" if isinstance(child, ast.ClassDef) else f"{name}({ast.unparse(child.args)})"
                yield shown, docs.strip()
            if isinstance(child, ast.ClassDef):
                yield from _docstrings(prefix, child, name)


def _builtin_docs(module: ModuleType) -> Iterator[tuple[str, str]]:
    """(name, docstring) of a module written in C, of its functions and types, and of their methods."""
    if docs := inspect.getdoc(module):
        yield "", docs.strip()
    for name, value in sorted(vars(module).items()):
        value = vars(module).get(f"__{name}__", value)  # `sys` keeps its hooks as they were before anyone set them
        own = getattr(value, "__module__", None) in (module.__name__, None)
        if not own or name.startswith("__") or not (inspect.isbuiltin(value) or inspect.isclass(value)):
            continue
        yield from _doc_of(name, value)
        if inspect.isclass(value):
            for method, member in sorted(vars(value).items()):
                if inspect.isroutine(member):
                    yield from _doc_of(f"{name}.{method}", member)


def _doc_of(name: str, value: Callable[..., object]) -> Iterator[tuple[str, str]]:
    docs = value.__doc__
    if isinstance(docs, str) and docs.strip():
        yield name, inspect.cleandoc(docs)


def _without_docstrings(source: str, tree: ast.Module) -> str:
    """The source with its docstrings taken out; one that is all of a body leaves `...` in its place."""
    lines = [line.encode() for line in io.StringIO(source)]  # positions in a tree count bytes of UTF-8
    for node, alone in sorted(_docstring_nodes(tree), key=lambda pair: -pair[0].lineno):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
        if alone or before.strip() or after.strip():
            lines[first : last + 1] = [before + b"..." + after]
        else:
            lines[first : last + 1] = []
    return b"".join(lines).decode().lstrip("\n")


def _docstring_nodes(tree: ast.Module) -> Iterator[tuple[ast.Expr, bool]]:
    """Docstrings, and whether each is the only statement of its function or class."""
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first, len(node.body) == 1 and not isinstance(node, ast.Module)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and the statements inside it, without their expressions: no definition stands in one."""
    yield node
    for block in ("body", "handlers", "cases", "orelse", "finalbody"):
        for child in getattr(node, block, ()):
            yield from _statements(child)
