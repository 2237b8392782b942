"""Files of this machine that a path or a pattern stands for: each real file once, whatever links lead to it."""

from __future__ import annotations

import difflib
import glob
import os
import re
import unicodedata
from collections.abc import Iterator

from lifecycle.data.read.files.kinds import READ
from lifecycle.data.read.files.selection import excused, sift
from lifecycle.errors import UserError

NO_TARGET = "a link to nothing"
NO_FILE = "not a file"
LOOP = "a link to a folder that is read anyway"
NAMES_SHOWN = 3

Local = tuple[list[str], dict[str, str]]
"""Paths that are read, and why others that were met are not."""


def find_local(pattern: str, *, where: str, split: str, advice: str = "") -> Local:
    """The files that an absolute path or pattern stands for. Raises UserError, which names the key `where`, if none.

    advice: what to do where nothing is there, behind what is.
    """
    pattern = _as_on_disk(pattern)
    if os.path.isdir(pattern):
        return _in_folder(pattern, where, split)
    if os.path.isfile(pattern):
        return [_readable(pattern, where)], {}
    if os.path.islink(pattern):
        raise UserError(f"{where}: {pattern} is a link to {os.readlink(pattern)}, which does not exist")
    if os.path.exists(pattern):
        raise UserError(
            f"{where}: {pattern} is no file (a pipe or a device); rows are read more than once: make it one"
        )
    met = sorted(set(_matching(pattern, where)))
    passed = {path: NO_TARGET for path in met if not os.path.exists(path)}
    found = [_readable(path, where) for path in met if os.path.isfile(path)]
    if not found:
        folders = sum(os.path.isdir(path) for path in met)
        only = f", but {folders} folder(s): end it in /**" if folders else f"; {excused(passed)}" if passed else None
        raise UserError(f"{where}: nothing matches {pattern}{_nearest(pattern) if only is None else only}{advice}")
    return found, passed


def once(paths: list[str]) -> tuple[list[str], dict[str, str]]:
    """Each real file once, by the name that is no link if there is one; why the others are not read."""
    by_file: dict[tuple[int, int], list[str]] = {}
    for path in dict.fromkeys(paths):
        stat = os.stat(path)
        by_file.setdefault((stat.st_dev, stat.st_ino), []).append(path)
    kept, passed = list[str](), dict[str, str]()
    for names in by_file.values():
        first, *others = sorted(names, key=lambda path: (path != os.path.realpath(path), path))
        kept.append(first)
        passed |= {path: "another name of a file that is read" for path in others}
    return kept, passed


def _in_folder(folder: str, where: str, split: str) -> Local:
    found, passed = _walk(folder, where)
    kept, sifted = sift({os.path.relpath(path, folder): os.stat(path).st_size for path in found}, split)
    passed |= {os.path.join(folder, path): why for path, why in sifted.items()}
    if not kept:
        holds = f"holds nothing that is read: {excused(passed)}. What is read: {READ}" if passed else "is empty"
        raise UserError(f"{where}: the folder {folder} {holds}")
    return [_readable(os.path.join(folder, path), where) for path in kept], passed


def _walk(folder: str, where: str) -> Local:
    """All files below `folder`, each real folder once; links are followed after what is no link."""
    found, passed = list[str](), dict[str, str]()
    real, linked, seen = [folder], list[str](), set[str]()
    while real or linked:
        here = real.pop() if real else linked.pop(0)
        place = os.path.realpath(here)
        if place in seen or os.path.realpath(folder).startswith(place.rstrip("/") + "/"):
            passed[here] = LOOP
            continue
        seen.add(place)
        for entry in _entries(here, where):
            if entry.name.startswith("."):
                passed[entry.path] = "hidden"
            elif entry.is_dir(follow_symlinks=False):
                real.append(entry.path)
            elif entry.is_dir():
                linked.append(entry.path)
            elif entry.is_file():
                found.append(entry.path)
            else:
                passed[entry.path] = NO_TARGET if entry.is_symlink() else NO_FILE
    return found, passed


def _entries(folder: str, where: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        raise UserError(f"{where}: {folder} cannot be listed (permission denied): mend its rights") from None


def _matching(pattern: str, where: str) -> Iterator[str]:
    """What a pattern matches; below `**` each real folder once, where Python's own glob follows a loop to its end."""
    head, anywhere, tail = pattern.partition("/**")
    for path in _expanded(head, where):
        if not anywhere:
            yield path
        elif os.path.isdir(path):
            rest = re.compile(_expression(f"**{tail}".split("/")))
            files, _ = _walk(path, where)
            yield from (file for file in files if rest.fullmatch(_nfc(os.path.relpath(file, path))))


def _expanded(pattern: str, where: str) -> list[str]:
    """What a pattern without `**` matches: hidden names only where it has their dot."""
    paths = ["/"]
    for part in pattern.strip("/").split("/") if pattern.strip("/") else []:
        named = [_as_on_disk(os.path.join(folder, part)) for folder in paths]
        named = [path for path in named if os.path.lexists(path)]
        if named or not glob.has_magic(part):
            paths = named
            continue
        name = re.compile(_piece(part))
        entries = [entry for folder in paths if os.path.isdir(folder) for entry in _entries(folder, where)]
        visible = [entry for entry in entries if entry.name.startswith(".") <= part.startswith(".")]
        paths = [entry.path for entry in visible if name.fullmatch(_nfc(entry.name))]
    return paths


def _expression(parts: list[str]) -> str:
    """A regular expression for paths: `**` is any folders, or at the end anything below."""
    *folders, last = parts
    out = "".join("(?:[^/]+/)*" if part == "**" else f"{_piece(part)}/" for part in folders)
    return out + (".*" if last == "**" else _piece(last))


def _piece(part: str) -> str:
    """A regular expression for one name."""
    out = ""
    for token in re.split(r"(\*+|\?|\[[^\]]+\])", _nfc(part)):
        if token.startswith("*"):
            out += "[^/]*"
        elif token == "?":
            out += "[^/]"
        elif len(token) > 2 and token.startswith("["):
            none_of = token[1] == "!"
            out += "[" + "^" * none_of + re.sub(r"([\\^\[])", r"\\\1", token[1 + none_of : -1]) + "]"
        else:
            out += re.escape(token)
    return out


def _readable(path: str, where: str) -> str:
    if not os.access(path, os.R_OK):
        raise UserError(f"{where}: {path} cannot be read (permission denied): mend its rights, or leave it out")
    return path


def _as_on_disk(path: str) -> str:
    """The path in the Unicode form that the disk has it in: é may be one character or two, and looks the same."""
    if os.path.lexists(path) or path == os.path.dirname(path):
        return path
    folder, name = os.path.split(path)
    folder = _as_on_disk(folder)
    if not name.isascii() and os.path.isdir(folder):
        name = next((entry for entry in os.listdir(folder) if _nfc(entry) == _nfc(name)), name)
    return os.path.join(folder, name)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _nearest(pattern: str) -> str:
    """What lies near a pattern that matches nothing."""
    folder, name = os.path.split(pattern)
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    names = sorted(entry for entry in os.listdir(folder or ".") if not entry.startswith("."))[:2000]
    near = difflib.get_close_matches(name, names, n=NAMES_SHOWN, cutoff=0.4) or names[:NAMES_SHOWN]
    return f"; {folder or '.'} has {', '.join(near)}" if near else f"; {folder or '.'} is empty"
