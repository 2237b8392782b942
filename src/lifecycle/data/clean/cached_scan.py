"""One pass over a source with results cached on disk: a fixed number of bytes a document, in memory-mapped files.

    columns = {"rows": ("<i8", 1), "digests": ("<u8", 2)}
    rows, digests = kept_scan(source, work, folder=cache / KEY, columns=columns, processes=4, doing="comparing")

`work` turns some rows into one array (N, width) for each column; several processes share the rows. An interrupted pass
continues where it stopped, and a finished one is not repeated. Of the ranks of a run one makes the pass, the others
wait for it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lifecycle.data.clean.scan import Work, scan
from lifecycle.data.clean.source import Source
from lifecycle.data.read.row import Position
from lifecycle.system import atomic

T = TypeVar("T")
DAMAGED = (ValueError, EOFError, KeyError, OSError, BadZipFile)
"""What reading a file raises that is cut short, or holds other bytes than were written."""

KEPT_EVERY = 32  # batches between two notes of how far a pass has come
Columns = Mapping[str, tuple[str, int]]  # numpy type and number of values a document, by file name
Found = Sequence[NDArray[Any]]  # an array (N, width), or (N,) of width 1, for each column


def kept_scan(
    source: Source, work: Work[Found], *, folder: Path, columns: Columns, processes: int, doing: str
) -> list[NDArray[Any]]:
    """The results of `work` on the rows of `source`: for each column an array (N, width), or (N,) where width is 1.

    folder: its name must identify everything that the results depend on. doing: what lines on stderr call the pass.
    """
    with alone(folder):
        folder.mkdir(exist_ok=True)
        done = _Progress.read(folder, columns)
        if not done.whole:
            done = _go_on(source, work, folder, columns, done, processes, doing)
    return [_mapped(folder / name, done.documents, *form) for name, form in columns.items()]


def kept(path: Path, write: Callable[[IO[bytes]], None], read: Callable[[Path], T]) -> T:
    """What `read` finds in the file that `write` fills, once for all processes. One that a power cut or a disk has
    damaged is said and made again."""
    with alone(path):
        if path.exists():
            try:
                return read(path)
            except DAMAGED as error:
                print(f"{path} is damaged ({error or type(error).__name__}): made again", file=sys.stderr)
        with open(aside := path.with_suffix(".part"), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        return read(path)


def kept_array(path: Path, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """The array of `make`, kept so as a file `.npy`."""
    return kept(path, lambda file: np.save(file, make()), np.load)


def alone(path: Path) -> FileLock:
    """The lock of the process that makes `path`; the others wait for it, and then find `path` made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_suffix(".lock"))


class _Progress(NamedTuple):
    """How far a pass has come: stored beside its files, so that the next start continues there."""

    documents: int = 0
    position: Position = Position(0, 0, 0)
    whole: bool = False

    def write(self, folder: Path) -> None:
        atomic.write(folder / "progress.json", json.dumps(self))

    @classmethod
    def read(cls, folder: Path, columns: Columns) -> _Progress:
        path = folder / "progress.json"
        if not path.exists():
            return cls()
        documents, position, whole = json.loads(path.read_text())
        there = all((folder / name).stat().st_size >= documents * _bytes(*form) for name, form in columns.items())
        return cls(documents, Position(*position), whole) if there else cls()


def _go_on(
    source: Source, work: Work[Found], folder: Path, columns: Columns, done: _Progress, processes: int, doing: str
) -> _Progress:
    passed = scan(source, work, processes=processes, start=done.position, doing=doing)
    with ExitStack() as stack:
        files = [
            stack.enter_context(_after(folder / name, done.documents * _bytes(*form))) for name, form in columns.items()
        ]
        for number, (found, position) in enumerate(passed, 1):
            for file, column, (kind, _) in zip(files, found, columns.values(), strict=True):
                file.write(np.ascontiguousarray(column, kind).tobytes())
            done = _Progress(done.documents + len(found[0]), position)
            if number % KEPT_EVERY == 0:
                for file in files:
                    file.flush()
                done.write(folder)
    done = done._replace(whole=True)
    done.write(folder)
    return done


def _bytes(kind: str, width: int) -> int:
    return np.dtype(kind).itemsize * width


def _mapped(path: Path, documents: int, kind: str, width: int) -> NDArray[Any]:
    shape = (documents,) if width == 1 else (documents, width)
    return np.memmap(path, kind, "r", shape=shape) if documents else np.zeros(shape, kind)


def _after(path: Path, size: int) -> IO[bytes]:
    """The file, open for writing after its first `size` bytes; what a killed pass wrote beyond them is dropped."""
    file = open(path, "r+b" if path.exists() else "wb")
    file.truncate(size)
    file.seek(size)
    return file
