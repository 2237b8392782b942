"""Reads files and code that this project has not written, and reports what is wrong with them.

    config = read_object(folder / "config.json")     # a JSON object, or a `UserError`: file, what came, what to do
    found = users_own("my_filters:educational", ...)  # a user's own function, or a `UserError`

A byte order mark is skipped. Common mistakes are named in the message: a Git LFS pointer, a login page, an incomplete
download, UTF-16, comments.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from lifecycle.errors import UserError

LFS = b"version https://git-lfs.github.com/spec/"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
AGAIN = "get the file again"
PACKAGE = "__init__.py"
SHOWN = 40
"""Characters of a file that an error shows."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Errors: `UserError` for everything else."""
    return parse_object(read_text(path), path)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Errors: `UserError` for everything else."""
    try:
        found = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} is not YAML{place}; {AGAIN}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, wanted keys and their values; {AGAIN}")
    return found


def want_mappings(found: Mapping[str, Any], places: Iterable[str], path: Path) -> None:
    """Raise `UserError` where what stands at one of the dotted `places` of a file, if anything, is no mapping; `*` in
    a place stands for every key."""
    for place in places:
        for name, value in _at(found, place.split("."), ""):
            if not isinstance(value, Mapping):
                raise UserError(f"{path}: {name} is {repr(value)[:SHOWN]}, wanted keys and their values; {AGAIN}")


def _at(found: Any, keys: list[str], name: str) -> Iterator[tuple[str, Any]]:
    """What stands at a dotted place, each with its name; nothing where nothing or null does."""
    if not keys:
        yield name.removeprefix("."), found
    elif isinstance(found, Mapping):
        for key in found if keys[0] == "*" else (keys[0],):
            if found.get(key) is not None:
                yield from _at(found[key], keys[1:], f"{name}.{key}")


def parse_object(text: str, path: Path) -> dict[str, Any]:
    """The same of the text of `path`."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {_fault(text, error)}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not JSON of use: it is nested too deeply; {AGAIN}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, wanted an object in braces; {AGAIN}")
    return found


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, less a byte order mark. Errors: `UserError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    came = mistaken(content)
    if came is not None:
        raise UserError(f"{path} is {came}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8 "
            f"(iconv -f cp1252 -t utf-8, if it comes from Windows), or {AGAIN}"
        ) from error


def mistaken(head: bytes) -> str | None:
    """What a file with this beginning is, and what to do, where it is none that anyone meant (see above); else None."""
    if not head.strip():
        return f"empty; {AGAIN}"
    if head.startswith(LFS):
        return "a Git LFS pointer, not the file itself; type `git lfs pull` in its repository, or download the file"
    if head.startswith(UTF16):
        return "UTF-16 text; save it as UTF-8 (iconv -f utf-16 -t utf-8)"
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"a web page (of a login, or of an error), not the file; {AGAIN}"
    return None


def mistaken_file(path: Path) -> str | None:
    """`mistaken` for the beginning of a file. Errors: `UserError` where it cannot be opened."""
    try:
        with path.open("rb") as file:
            return mistaken(file.read(256))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _fault(text: str, error: json.JSONDecodeError) -> str:
    """What is wrong at the place where a parser stopped."""
    rest, before = text[error.pos :].lstrip(), text[: error.pos].rstrip()
    place = f"line {error.lineno}, column {error.colno}"
    if rest.startswith(("//", "/*", "#")):
        return f"{place} is a comment, which JSON does not have; take it out"
    if not text.rstrip().endswith("}") and not error.msg.startswith("Extra data"):
        return f"it breaks off at its end ({text.rstrip()[-SHOWN:]!r}); {AGAIN}"
    if rest[:1] in ("}", "]") and before.endswith(","):
        return f"the comma before {place} has nothing behind it; take it out"
    return f"{error.msg} at {place} ({rest[:SHOWN]!r}); mend it there, or {AGAIN}"


@cache
def users_own(name: str, where: str, *, what: Literal["function", "class"], example: str) -> Any:
    """A user's function or class by its name in a config, MODULE:NAME, from the working directory or any package. A
    config file must not be able to run just anything: names in Python's own library are refused, and so are
    names that a module only imports from elsewhere. where: the dotted key. Raises UserError."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise UserError(f"{where} is {name!r}; wanted MODULE:{what.upper()}, such as {example}")
    if module_name.endswith(".py"):
        meant = ".".join(Path(module_name).with_suffix("").parts)
        raise UserError(f"{where} is {name!r}, with the name of a file; wanted that of its module: {meant}:{attribute}")
    if module_name.split(".")[0] in sys.stdlib_module_names:
        raise UserError(
            f"{where} is {name!r}, of Python's own library; wanted a {what} of your own, MODULE:{what.upper()}"
        )
    if os.getcwd() not in sys.path:  # `lifecycle` as a command does not look there, `python -m lifecycle` does
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{where} is {name!r}, and importing {module_name} fails ({type(error).__name__}: {error}): put "
            f"{module_name.split('.')[0]}.py into the working directory, or install its package"
        ) from error
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) if what == "class" else callable(found)):
        raise UserError(f"{where} is {name!r}, and {module_name} has no {what} {attribute}")
    if getattr(found, "__module__", None) != module_name:
        raise UserError(
            f"{where} is {name!r}, which {module_name} only imports: name the module that defines it "
            f"({getattr(found, '__module__', 'unknown')}:{attribute})"
        )
    return found


def text_of(own: Any) -> str | None:
    """A hash of the file that a user's function or class stands in, as it is now, and behind a colon one of the files
    beside it that it imports, at whatever place in it; None where there is no such file."""
    module = own.__module__
    file = getattr(sys.modules[module], "__file__", None)
    if file is None:
        return None
    path = Path(file)
    root = path.parents[module.count(".") + (path.name == PACKAGE)]
    others = sorted(_imports(path, root, module.partition(".")[0]))
    text = hashlib.sha256(path.read_bytes()).hexdigest()
    texts = [(str(other.relative_to(root)), hashlib.sha256(other.read_bytes()).hexdigest()) for other in others]
    return f"{text}:{hashlib.sha256(repr(texts).encode()).hexdigest()}" if texts else text


def _imports(path: Path, root: Path, package: str) -> set[Path]:
    """The files in `root` that `path` imports, and those that these do; of an installed package its own alone."""
    own_alone = not {"site-packages", "dist-packages"}.isdisjoint(root.parts)
    found, waiting = {path}, [path]
    while waiting:
        for name in _imported_names(waiting.pop(), root):
            parts = name.split(".")
            if own_alone and parts[0] != package:
                continue
            places = [root.joinpath(*parts[:end]) for end in range(1, len(parts) + 1)]
            files = {file for place in places for file in (place.with_name(f"{place.name}.py"), place / PACKAGE)}
            new = {file for file in files - found if file.is_file()}
            found |= new
            waiting += new
    return found - {path}


def _imported_names(path: Path, root: Path) -> Iterator[str]:
    """The dotted names that a file imports, and what it takes from them, which may be modules too."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # of a file that is imported later, if at all
        return
    parents = path.relative_to(root).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else ()
            parts = [*above, *([node.module] if node.module else [])]
            yield from (".".join([*parts, *([] if alias.name == "*" else [alias.name])]) for alias in node.names)


def check_text(then: str | None, now: str | None, *, of: str, does: str) -> None:
    """Raise UserError where the file of a function or class is another (`text_of`) than when the run began, or one that
    it imports. of, does: what it is, and does, in words."""
    if then is not None and now is not None and ":" not in then:
        now = now.partition(":")[0]  # of an older version, which did not look at what is imported
    if then != now:
        raise UserError(
            f"resume: the file of {of} has changed since this checkpoint, or one beside it that it imports, and what "
            f"it {does} may have: put it back as it was, or start another run from this one's weights "
            "(init_from=RUN run=NAME)"
        )
