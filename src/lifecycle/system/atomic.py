"""Files and folders that are there whole or not at all: written beside their place, then renamed into it.

Each raises FolderLost, having written nothing, for a place in the folder of a run that was taken over (`owner`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from lifecycle.system import owner

PARTIAL = ".partial"  # where files of a folder are while they are written


def write(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path`, making its folder: a reader never sees a part of it, and after a power
    cut it is the old file or the new one. For small files: each call synchronises the disk."""
    owner.check(path)
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
    owner.check(folder)
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
        owner.check(folder)
        if replace and folder.is_dir():
            folder.rename(before)
        try:
            aside.rename(folder)
        except OSError:
            if before.is_dir():
                before.rename(folder)
            if replace or not folder.is_dir():
                raise
        _sync(folder.parent)
    finally:
        for left in (aside, before):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def replace_files(folder: Path, *, marker: str, stale: Sequence[str]) -> Iterator[Path]:
    """An empty folder to write into, whose files are in `folder` once the block has ended, all of them; after an
    exception none. For large files, and for a folder that others may have put files into, which stay.

    marker: the file without which `folder` is nothing. stale: patterns of files that an older content may have and the
    new one need not replace. On the same disk: remove the marker, remove the stale files, move the new ones in, last
    the marker. So a kill while the files are written, which may take minutes, leaves the older content; one in the few
    moves after that a folder without its marker, and never new files beside old.
    """
    owner.check(folder)
    aside = folder / PARTIAL
    shutil.rmtree(aside, ignore_errors=True)  # of a call that was killed
    aside.mkdir(parents=True)
    try:
        yield aside
        written = [path.relative_to(aside) for path in aside.rglob("*") if path.is_file()]
        owner.check(folder)
        (folder / marker).unlink(missing_ok=True)
        for old in [path for pattern in stale for path in folder.glob(pattern)]:
            old.unlink()
        for path in sorted(written, key=lambda path: str(path) == marker):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).replace(folder / path)
    finally:
        if not owner.lost(folder):  # the folder of that name is the new owner's
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def told_in_words(path: Path) -> Iterator[None]:
    """Raise the OSError of what a library in Rust writes to `path`: of a full disk, say, it tells in words only."""
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None or isinstance(error, OSError):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


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
