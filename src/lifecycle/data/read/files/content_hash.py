"""Hashes of the content of files: data is identified by its content, whatever the names and folders of its files.

    hashes = content_hashes(["/data/a.jsonl", "/data/b.jsonl"], cache=cache_folder())     {path: xxh3_128 of its bytes}

A file is read once a machine: its hash is kept in the cache by its path, size and times. Of the ranks of a run one
reads a file, the others wait for its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import xxhash
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from lifecycle.system import atomic

BLOCK_BYTES = 1 << 22
SHOWN_FROM_BYTES = 1 << 30  # of files to read: less takes a second
KEPT_EVERY_S = 30.0  # between two writes of the hashes made so far, so that a killed start has not to read them again
SETTLED_S = 3.0  # a file younger than this may change again without another time stamp, on a coarse clock

_Stamp = tuple[int, int, int]  # size, time of the last change of the content, of the file
_Note = dict[str, list[int | str]]  # path: its stamp and its hash


def content_hashes(paths: Sequence[str], *, cache: Path) -> dict[str, str]:
    """The xxh3_128 of each local file's bytes, by path."""
    if not paths:
        return {}
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    note = cache / "contents" / f"{hashlib.sha256(folder.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
    stamps = {path: _stamp(path) for path in paths}
    found = _known(_read(note), stamps)
    if len(found) < len(stamps):
        note.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(note.with_suffix(".lock")):
            kept = _read(note)
            found = _known(kept, stamps)
            found |= _hashed({path: stamp for path, stamp in stamps.items() if path not in found}, kept, note)
    return found


def _hashed(stamps: Mapping[str, _Stamp], kept: _Note, note: Path) -> dict[str, str]:
    """The hashes of files that must be read. They are added to `kept` and written, but for files so young that they may
    change again without another time stamp."""
    found: dict[str, str] = {}
    written = time.monotonic()
    with _progress(stamps.values()) as advance, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for path, made in pool.map(lambda path: (path, _hash(path, advance)), stamps):
            found[path] = made
            settled = time.time() - max(stamps[path][1:]) / 1e9 > SETTLED_S
            if settled and _stamp(path) == stamps[path]:
                kept[path] = [*stamps[path], made]
            if time.monotonic() - written > KEPT_EVERY_S:
                atomic.write(note, json.dumps(kept))
                written = time.monotonic()
    atomic.write(note, json.dumps(kept))
    return found


def _hash(path: str, advance: Callable[[int], None]) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def _stamp(path: str) -> _Stamp:
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _known(note: _Note, stamps: Mapping[str, _Stamp]) -> dict[str, str]:
    return {
        path: str(note[path][-1]) for path, stamp in stamps.items() if path in note and note[path][:-1] == list(stamp)
    }


def _read(note: Path) -> _Note:
    return dict(json.loads(note.read_text())) if note.exists() else {}


@contextmanager
def _progress(stamps: Iterable[_Stamp]) -> Iterator[Callable[[int], None]]:
    """A bar over the bytes to read, where they are many."""
    total = sum(stamp[0] for stamp in stamps)
    if total < SHOWN_FROM_BYTES:
        yield lambda size: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading what the files hold (once a machine)", total=total)
        yield lambda size: bar.advance(task, size)
