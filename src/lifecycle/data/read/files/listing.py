"""Where the rows of a source lie: a spec resolved to a sorted tuple of files, local or remote.

    found = listing(spec, name="web", root="/data", cache=Path("cache"))
    found.files                 (File(url, size, kind, stamp), ...)
    found.passed                {"/data/README.md": "about the data"}
    identity = fingerprint(found.files)

Files are identified by their content: those of this machine by a hash of their bytes, remote ones by the hash that
their store gives, and by size and time where it gives none.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lifecycle.data.read.files.builtin_text import KINDS, materialise
from lifecycle.data.read.files.content_hash import content_hashes
from lifecycle.data.read.files.kinds import READ, SUFFIXES, Kind, compression_of, suffix_of, unread
from lifecycle.data.read.files.local import find_local, once
from lifecycle.data.read.files.remote import find_remote, hub_files
from lifecycle.data.read.files.selection import Passed, described
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError

READING = 2
"""Increased when the same bytes are cut or parsed into other rows: cached results of files are then made again."""

MOST_ROW_BYTES = 10_000_000
"""A longer row is a bad row: it is skipped without being held in memory."""

HERE = ". Relative paths start in the folder where the command was typed: data.root=FOLDER names another one"
"""What to do where nothing is at a relative path, and no root is named."""


@dataclass(frozen=True, slots=True)
class File:
    """One data file: absolute path or URL, size in bytes as stored, and kind of its rows.

    stamp: identifies the content: a hash of a local file's bytes, or a remote store's hash or time; empty where the
    store gives none, or it was not computed.
    columns: the only ones to read, where columns can be read alone (Parquet, Arrow); None: all.
    encoding: of its text. source: the dotted key that says how it is read, for messages.
    """

    url: str
    size: int
    kind: Kind
    stamp: str = ""
    columns: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    source: str = field(default="data.sources.NAME", compare=False)

    @property
    def is_utf8(self) -> bool:
        """Whether its text is UTF-8 as it is stored."""
        return codecs.lookup(self.encoding).name == "utf-8"

    @property
    def compression(self) -> str | None:
        """`.gz`, `.zst`, `.xz`, `.bz2` or None."""
        return compression_of(self.url)


@dataclass(frozen=True)
class Listing:
    """The files of a source. passed: by path, why other files that were found there are not read."""

    files: tuple[File, ...]
    passed: Passed = field(default_factory=dict)

    def __str__(self) -> str:
        return described({file.url: file.size for file in self.files}, self.passed)


def listing(
    spec: SourceSpec,
    *,
    name: str,
    cache: Path,
    root: str | None = None,
    split: str | None = None,
    where: str | None = None,
) -> Listing:
    """The files of a source's `split` (None: `spec.split`), sorted by URL and each real file once; local ones without
    their stamps (see `hashed`).

    `root` is put before relative paths; `python://` texts are materialised under `cache`. Raises UserError when nothing
    matches, a kind is not known, or a remote place cannot be reached; `where` is the dotted key that it names (None:
    the source's).
    """
    where, split = where or f"data.sources.{name}", split or spec.split
    if spec.hub is not None:
        urls = hub_files(spec, place(spec.hub, root), split, where=where)
    elif isinstance(spec.path, dict):
        if split not in spec.path:
            raise UserError(f"{where}.path has no split {split!r}; it has {', '.join(spec.path)}")
        urls = _as_list(spec.path[split])
    else:
        urls = _as_list(spec.path or [])
    return _files(urls, source=where, split=split, root=root, cache=cache, spec=spec)


def hashed(found: Listing, cache: Path) -> Listing:
    """The same with stamps: local files are read for them, once a machine."""
    known = content_hashes([file.url for file in found.files if not is_remote(file.url)], cache=cache)
    return replace(found, files=tuple(replace(file, stamp=known.get(file.url, file.stamp)) for file in found.files))


def resolve(
    spec: SourceSpec,
    *,
    name: str,
    cache: Path,
    root: str | None = None,
    split: str | None = None,
    where: str | None = None,
) -> tuple[File, ...]:
    """The files alone of the `listing` of these arguments, with their stamps."""
    return hashed(listing(spec, name=name, cache=cache, root=root, split=split, where=where), cache).files


def fingerprint(files: Iterable[File]) -> str:
    """sha256 over the content of the files, in order, and how rows are cut out of them; names, folders and times of
    local files do not change it."""
    rows = [[file.kind, file.compression, file.encoding, file.size, file.stamp] for file in files]
    return hashlib.sha256(json.dumps([READING, *rows]).encode()).hexdigest()


def is_remote(url: str) -> bool:
    """Whether fsspec, not the local file system, opens `url`."""
    return "://" in url


def place(url: str, root: str | None) -> str:
    """An absolute path, or an address: `url` as it is read where relative paths start at `root` (None: right here)."""
    if is_remote(url):
        return url
    url = os.path.expanduser(url)
    if root and is_remote(root) and not os.path.isabs(url):
        return f"{root.rstrip('/')}/{url}"
    return os.path.abspath(os.path.join(os.path.expanduser(root or ""), url))


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _files(urls: list[str], *, source: str, split: str, root: str | None, cache: Path, spec: SourceSpec) -> Listing:
    where = f"{source}.{'hub' if spec.hub else 'path'}"
    found: dict[str, tuple[int, str]] = {}
    passed: dict[str, str] = {}
    local: list[str] = []
    for url in urls:
        if url.startswith("python://"):
            found |= _python_text(url, where=where, cache=cache)
        elif is_remote(placed := place(url, root)):
            remote, others = find_remote(placed, where=where, split=split)
            found, passed = found | remote, passed | others
        else:
            advice = HERE if not root and not os.path.isabs(os.path.expanduser(url)) else ""
            paths, others = find_local(placed, where=where, split=split, advice=advice)
            local, passed = local + paths, passed | others
    local, again = once(local)
    found |= {path: (os.stat(path).st_size, "") for path in local}
    files = tuple(
        File(url, size, _kind(url, spec, where=where), stamp, spec.columns, spec.encoding, source)
        for url, (size, stamp) in sorted(found.items())
    )
    _refuse_giant_documents(files, where)
    return Listing(files, {path: why for path, why in (passed | again).items() if path not in found})


def _python_text(url: str, *, where: str, cache: Path) -> dict[str, tuple[int, str]]:
    kind = url.removeprefix("python://")
    if kind not in KINDS:
        known = ", ".join(f"python://{name}" for name in KINDS)
        raise UserError(f"{where} is {url!r}; this Python's own texts are {known}")
    path = materialise(kind, cache)
    return {str(path): (path.stat().st_size, "")}


def _kind(path: str, spec: SourceSpec, *, where: str) -> Kind:
    if (suffix := unread(path)) is not None:
        raise UserError(
            f"{where}: {path} is a {suffix} file; what is read: {READ}. Convert it (`datasets` reads most formats: "
            "load_dataset(...).to_parquet(...)), or narrow the pattern"
        )
    return SUFFIXES.get(suffix_of(path), spec.sample_by)


def _refuse_giant_documents(files: Iterable[File], where: str) -> None:
    for file in files:
        if file.kind == "document" and file.size > MOST_ROW_BYTES:
            raise UserError(
                f"{where}: {file.url} is one text file of {file.size:,} bytes, and sample_by is document (one file, "
                f"one document, {MOST_ROW_BYTES:,} bytes at most): set sample_by to line or paragraph"
            )
