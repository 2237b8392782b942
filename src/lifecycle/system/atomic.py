"""Files and folders that are there whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path`, making its folder: a reader never sees a part of it, and after a power
    cut it is the old file or the new one. For small files: each call waits for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:  # a full disk: leave no part of it
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def publish_folder(folder: Path, *, replace: bool) -> Iterator[Path]:
    """An empty folder to write into, which stands at `folder` once the block has ended: all of it, after a power cut
    too, or after an exception nothing.

    Where a folder stands there by then, this one takes its place (`replace`), or it stays and this one goes: of several
    processes that fill a cache with the same content, the first is as good as the last. For small folders, whose files
    nobody adds to: each file is waited for.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.{threading.get_ident()}")
    before = aside.with_name(f"{aside.name}.before")
    for left in (aside, before):  # of a process that was killed, with the same number
        shutil.rmtree(left, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for path in (*aside.rglob("*"), aside):
            _sync(path)
        if replace and folder.is_dir():
            folder.rename(before)
        try:
            aside.rename(folder)
        except OSError:
            if replace or not folder.is_dir():
                raise
        _sync(folder.parent)
    finally:
        for left in (aside, before):
            shutil.rmtree(left, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Names in a folder survive a power cut only after the folder itself is synced."""
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:  # some network file systems sync no folders, and have nothing to lose by it
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)
