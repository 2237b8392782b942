"""Parts of remote files on this machine's disk, so that its processes fetch each byte about once a pass.

    file (address, size, stamp) -> parts of 8 MB -> <cache>/remote/<hash>-<number>.part, the least recently used deleted

A part is fetched by one process at a time; the others wait for it and find it. It carries its own hash, so one that was
cut short or damaged is fetched again. The parts take at most a quarter of what is free on their disk, and never more
than 100 GB; where nothing can be written, files are read as if there were no cache, and stderr says so once.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash
from filelock import FileLock, Timeout

from lifecycle.system.say_once import say_once

PART_BYTES = 8 << 20
SHARE_OF_FREE = 0.25  # of the disk's free bytes, those that the parts take counted as free
MOST_BYTES = 100 * 10**9
LEFT = 0.9  # of the room, once it was too little: so that not every part makes room for itself
LOOK_EVERY = 16  # parts that a process writes between two looks at how much room all take
DIGEST_BYTES = 16
LOCKS = 256  # files that are locked, each for many parts
WAIT_S = 600.0  # for another process that fetches a part: then it is fetched beside it
USED_EVERY_S = 60.0  # a part's time of use is written down again after so long
ABANDONED_S = 3600.0  # a file that a killed process was writing


class Parts:
    """The parts of all remote files in `folder`, which several processes may share.

    most_bytes: limit on the bytes of all parts, where it is below the limit by the share of the disk.
    """

    def __init__(self, folder: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self._most_bytes = folder, most_bytes
        self._written, self._room = 0, 0

    def part(self, name: str, size: int, fetch: Callable[[], bytes]) -> bytes:
        """The part called `name`, of `size` bytes: from the disk, or by `fetch`, and then kept."""
        path = self.folder / f"{name}.part"
        found = _read(path, size)
        if found is None:
            with self._alone(name):
                found = _read(path, size)
                if found is None:
                    found = fetch()
                    self._keep(path, found)
        return found

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """While it lasts, no other process fetches the part, if the disk supports locks."""
        lock = FileLock(self.folder / f"{xxhash.xxh3_64_intdigest(name.encode()) % LOCKS:03d}.lock", WAIT_S)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            pass
        except (OSError, NotImplementedError) as error:
            self._say(error)
        try:
            yield
        finally:
            lock.release()

    def _keep(self, path: Path, content: bytes) -> None:
        aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            if self._written % LOOK_EVERY == 0:
                self._room = self._make_room()
            self._written += 1
            if len(content) > self._room:
                return
            aside.write_bytes(content + xxhash.xxh3_128_digest(content))
            aside.replace(path)
        except OSError as error:
            with suppress(OSError):
                aside.unlink()
            self._say(error)

    def _make_room(self) -> int:
        """Where the parts take too much, delete the least recently used; returns the bytes that all may take."""
        files = [entry for entry in os.scandir(self.folder) if not entry.name.endswith(".lock")]
        known = [(entry, stat) for entry in files if (stat := _stat(entry)) is not None]
        taken = sum(stat.st_size for _, stat in known)
        room = min(self._most_bytes, int(SHARE_OF_FREE * (shutil.disk_usage(self.folder).free + taken)))
        now = time.time()
        for entry, stat in sorted(known, key=lambda one: one[1].st_mtime):
            abandoned = entry.name.startswith(".") and now - stat.st_mtime > ABANDONED_S
            if abandoned or (taken > LEFT * room and not entry.name.startswith(".")):
                Path(entry.path).unlink(missing_ok=True)  # another process may have been faster
                taken -= stat.st_size
        return room

    def _say(self, error: Exception) -> None:
        say_once(
            f"warning: parts of remote files cannot be kept in {self.folder} ({error}): what is read again is fetched "
            "again. LIFECYCLE_CACHE names another place for the cache\n",
            about=os.fspath(self.folder),
        )


def _read(path: Path, size: int) -> bytes | None:
    """The part at `path`; None if it is not there, or not as it was written."""
    try:
        with open(path, "rb", buffering=0) as file:
            stored = file.read(size + DIGEST_BYTES + 1)
            if time.time() - os.fstat(file.fileno()).st_mtime > USED_EVERY_S:
                os.utime(path)
    except OSError:
        return None
    content, digest = stored[:size], stored[size:]
    return content if xxhash.xxh3_128_digest(content) == digest else None


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:
        return None
