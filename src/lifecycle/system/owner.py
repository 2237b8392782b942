"""Whether a run's folder is still this process's own, which is asked before each write into it.

    with hold(folder): ...      (lock.py) this process owns the folder; its name stands in the lock
    check(path)                 raises FolderLost where another process's name stands there by now

That happens to a process which gave no sign of life for minutes: a laptop that slept, a container that was stopped, a
file system that was away. A process forked from the owner asks for itself, by the lock's file. What the folder of no
run is in is not asked about.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifecycle.errors import FolderLost

LOCK = ".lock"
STALE_S = 180.0  # seconds without a sign of life after which a process that cannot be looked at counts as dead
WRITING_S = 1.0  # seconds after which a lock that names nobody is no longer one that is being written


@dataclass
class _Owned:
    """me: what this process wrote into the lock. sign: time of its last sign of life. lost: who has the folder now."""

    me: dict[str, Any]
    sign: float
    lost: str | None = None


_owned: dict[Path, _Owned] = {}


def own(folder: Path, me: dict[str, Any]) -> None:
    """From now on `folder` is this process's own, whose lock says `me`."""
    _owned[_absolute(folder)] = _Owned(me=me, sign=time.time())


def disown(folder: Path) -> None:
    """The run has ended."""
    del _owned[_absolute(folder)]


def signed(folder: Path) -> None:
    """The owner has given a sign of life."""
    if (owned := _owned.get(_absolute(folder))) is not None:
        owned.sign = time.time()


def check(path: Path, *, look: bool = True) -> None:
    """Raise FolderLost where `path` is in the folder of a run that another process has taken over from this one.

    look: read the lock; without it only what was seen before counts, by the heartbeat or at a write.
    """
    for folder, owned in _around(path):
        if owned.lost is None and look:
            owned.lost = _other(folder, owned)
        if owned.lost is not None:
            raise FolderLost(
                f"run '{folder}' was taken over by {owned.lost} while this process gave no sign of life; it ends here "
                "and saves nothing. The same command goes on when the other is done"
            )


def lost(path: Path) -> bool:
    """Whether `check` would raise."""
    try:
        check(path)
    except FolderLost:
        return True
    return False


def _around(path: Path) -> list[tuple[Path, _Owned]]:
    if not _owned:
        return []
    place = _absolute(path)
    return [(folder, owned) for folder, owned in list(_owned.items()) if place.is_relative_to(folder)]


def _other(folder: Path, owned: _Owned) -> str | None:
    """Who has the folder, in words; None where it is ours. A lock that is gone was somebody else's if we were silent
    for so long that it could be, and else one that was removed by hand."""
    until = time.monotonic() + WRITING_S
    with contextlib.suppress(OSError):  # the file system may be away for a while
        while (found := read(folder / LOCK)) == {} and time.monotonic() < until:
            time.sleep(0.01)
        if found is None:
            return "a process that has ended since" if time.time() - owned.sign > STALE_S else None
        return None if found == owned.me else who(found)
    return None


def who(holder: dict[str, Any]) -> str:
    """The process that a lock names."""
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown machine')}"


def read(path: Path) -> dict[str, Any] | None:
    """What a lock says; empty where it names no process: while it is being written, after a crash of the disk, and for
    what no lock of ours is; None where there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and _names_one(found) else {}


def _names_one(found: dict[str, Any]) -> bool:
    """Whether a lock is one of ours, all of whose fields can be read."""
    texts = all(isinstance(found.get(key), str) for key in ("host", "began", "boot", "namespace", "token"))
    pid, since = found.get("pid"), found.get("since")
    if not texts or not isinstance(pid, int) or not isinstance(since, int | float):
        return False
    return not isinstance(pid, bool) and 0 < pid < 2**31 and 0 <= since < 2**32


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))
