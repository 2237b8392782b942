"""The commit protocol of a checkpoint: written aside, hashed while written, manifest last, one rename.

.staging-step-00000030-<pid>/   data files, each hashed as its bytes go out and fsynced
                                manifest.json: bytes and sha256 of every file, and its own sha256
  -> rename ->  step-00000030/  a folder is there whole, or not at all
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lifecycle.checkpoint.manifest import CHUNK, MANIFEST, CheckpointError, Entry, Manifest, encode, verify
from lifecycle.errors import DISK_FULL, TOO_LARGE, FolderLost
from lifecycle.system import owner
from lifecycle.system.atomic import sync_folder

_STEP = re.compile(r"step-(\d{8,})")
_STAGING = re.compile(r"\.staging-.+-(\d+)")


class HashingFile:
    """A new file that hashes what it is given; `entry()` after it was closed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`; returns its number of bytes."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            self._hash.update(chunk)
            self._file.write(chunk)
        self._bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._bytes

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()

    def fileno(self) -> int:
        """The operating system's number of the file."""
        return self._file.fileno()

    def entry(self) -> Entry:
        """Bytes and hash of what was written."""
        return Entry(bytes=self._bytes, sha256=self._hash.hexdigest())

    def __enter__(self) -> HashingFile:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def close(self) -> None:
        """Bring everything to the disk; more calls do nothing."""
        if not self._file.closed:
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())


@dataclass(frozen=True)
class Staging:
    """A checkpoint that is being written; `files` holds what was finished."""

    folder: Path
    files: dict[str, Entry] = field(default_factory=dict)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[HashingFile]:
        """A file of the checkpoint, on disk and recorded when the block ends."""
        owner.check(self.folder)
        with HashingFile(self.folder / name) as file:
            yield file
        self.files[name] = file.entry()


def open_staging(path: Path, needed_bytes: int) -> Path:
    """Make the empty folder beside `path` that this process writes it in; OSError if `needed_bytes` are not free."""
    owner.check(path)
    folder = _staging(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if shutil.disk_usage(folder).free < needed_bytes:  # found before the disk is full for all who use it
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    return folder


@contextlib.contextmanager
def staged(
    path: Path, *, step: int, tokens: int | None, needed_bytes: int, remedies: Callable[[], str] | None = None
) -> Iterator[Staging]:
    """Write the checkpoint `path`: it is there when the block has ended, and nothing of it when the block raised.

    Raises `CheckpointError` where the file system refuses (disk full: says how many bytes were needed and free, and
    the `remedies`), FolderLost where another process has taken over the run: what was written stays where it is, since
    a name with the number of this process may be the other's, on another machine.
    """
    try:
        staging = Staging(open_staging(path, needed_bytes))
        yield staging
        commit(staging.folder, path, staging.files, step=step, tokens=tokens)
    except OSError as error:
        shutil.rmtree(_staging(path), ignore_errors=True)
        raise refused(path, error, needed_bytes, remedies() if remedies else "") from error
    except FolderLost:
        raise
    except BaseException:
        shutil.rmtree(_staging(path), ignore_errors=True)
        raise


def refused(path: Path, error: OSError, needed_bytes: int, remedies: str = "") -> CheckpointError:
    """The error for a write that the file system refused; remedies: what the user could delete where the disk is
    full."""
    words = (
        f"checkpoint {path} could not be written ({error.strerror or error}); the checkpoints before it are intact. "
    )
    if error.errno == errno.EFBIG:
        return CheckpointError(
            f"{words}It needs {needed_bytes:,} bytes; {TOO_LARGE}. Then start the same command again"
        )
    if error.errno in DISK_FULL:
        free = shutil.disk_usage(path.parent).free
        return CheckpointError(
            f"{words}It needs {needed_bytes:,} bytes, {free:,} bytes are free: make room there and start the same "
            f"command again. {remedies}".rstrip(". ")
        )
    return CheckpointError(
        f"{words}Mend {error.filename or path.parent} (permissions? mounted?) and start the same command again"
    )


def commit(folder: Path, path: Path, files: dict[str, Entry], *, step: int, tokens: int | None) -> None:
    """Give the staging `folder`, whose `files` are on disk, its manifest and its name `path`."""
    owner.check(path)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    manifest = Manifest(step=step, tokens=tokens, files=files, created=created, versions=versions)
    with HashingFile(folder / MANIFEST) as file:
        file.write(encode(manifest))
    sync_folder(folder)
    owner.check(path)
    if path.exists() and not (path / MANIFEST).exists():
        _set_aside(path)
    folder.rename(path)
    sync_folder(path.parent)


def step_of(path: Path) -> int | None:
    """30 for `step-00000030`, None for any other name."""
    found = _STEP.fullmatch(path.name)
    return int(found.group(1)) if found else None


def list_committed(folder: Path) -> list[Path]:
    """Checkpoints in `folder` that have a manifest, oldest step first; their files are not looked at."""
    return [path for path in _steps(folder) if (path / MANIFEST).is_file()]


def last_good(folder: Path, *, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint in `folder` that verifies, None if there is none. For the start of a run, on rank 0.

    A damaged one is skipped: `warn` gets a line that names checkpoint, file and reason, and its folder is renamed to
    `damaged-...`, so that nothing takes it for a checkpoint. Unfinished checkpoints of dead processes are removed.
    """
    clear_staging(folder)
    for path in reversed(_steps(folder)):
        try:
            verify(path)
        except CheckpointError as error:
            warn(f"{error}; passed over, kept as {_set_aside(path).name}")
        else:
            return path
    return None


def clear_staging(folder: Path) -> None:
    """Remove the staging folders of processes that have ended; their ids are only known on the same machine."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        found = _STAGING.fullmatch(path.name)
        if found and (int(found.group(1)) == os.getpid() or not _alive(int(found.group(1)))):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove(path: Path) -> None:
    """Delete a checkpoint so that a crash in the middle leaves no half of it under its name."""
    owner.check(path)
    aside = path.parent / f".staging-removed-{path.name}-{os.getpid()}"
    path.rename(aside)
    shutil.rmtree(aside)


def write_durable(path: Path, content: bytes) -> None:
    """Replace a small file: after a crash it holds the old content or the new."""
    owner.check(path)
    aside = _staging(path)
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def _staging(path: Path) -> Path:
    return path.parent / f".staging-{path.name}-{os.getpid()}"


def _steps(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if step_of(path) is not None] if folder.is_dir() else []
    return sorted(found, key=lambda path: step_of(path) or 0)


def _set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint to the first free `damaged-...` name."""
    names = (path.parent / f"damaged-{path.name}{suffix}" for suffix in ("", *(f".{n}" for n in range(1, 10_000))))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    return aside


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True
