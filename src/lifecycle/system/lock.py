"""The lock of a run's folder: a file with the process that holds it, touched by a heartbeat while it lives.

    with hold(folder.path): ...            outputs/RUN/.lock: host, pid, the time when that process began; touched every
                                           BEAT_S seconds

Rank 0 holds it for all ranks of its launch. It is made by an exclusive create, which network file systems keep as well,
and taken over where its process is gone: seen at once on the same machine, from another one after STALE_S seconds
without a heartbeat (by the clock of the file server, which all machines share). The process that it was taken from
learns so from `owner.check`, and writes nothing more there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lifecycle.errors import DISK_FULL, UserError
from lifecycle.system import owner
from lifecycle.system.owner import LOCK, STALE_S
from lifecycle.system.ranks import on_first_node, rank

GUARD = ".lock-taking"
BEAT_S = 15.0  # seconds between two signs of life
RELEASE_S = 5.0  # seconds for a last one at the end: a file system that is away would keep it for ever


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` (made if need be) while the block runs.

    Raises UserError, having changed nothing, where another process does, and where the folder cannot be written. Ranks
    other than 0 belong to their rank 0 and hold nothing.
    """
    if rank() != 0 or not on_first_node():
        yield
        return
    path, me = folder / LOCK, _me()
    _take(path, me)
    owner.own(folder, me)
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, me, over), name="heartbeat", daemon=True)
    heart.start()
    try:
        yield
    finally:
        if os.getpid() == me["pid"]:  # not in a process that was forked from this one
            over.set()
            heart.join(RELEASE_S)
            owner.disown(folder)
            with contextlib.suppress(OSError):  # a disk that may not be written any more has an error of its own
                if owner.read(path) == me:
                    path.unlink(missing_ok=True)


def _take(path: Path, me: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _take_there(path, me)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UserError(
            f"the run's folder {path.parent} cannot be written ({error.strerror or error}): mend that (permissions? "
            "mounted? a file of that name?), or start in another folder"
        ) from error


def _take_there(path: Path, me: dict[str, Any]) -> None:
    while not _made(path, me):
        holder, age = owner.read(path), _age(path)
        if holder is None or age is None:
            continue  # it was released in between
        seen = _can_be_looked_at(holder, me)
        if _lives(holder) if seen else _gives_a_sign(path, holder, STALE_S - age):
            raise _held(path, owner.read(path) or holder, age)  # it may have said who it is since, or be another
        _clear(path, holder, me)


def _gives_a_sign(path: Path, holder: dict[str, Any], seconds: float) -> bool:
    """Whether a holder that cannot be looked at from here gives a sign of life, or the lock goes on to another, within
    `seconds`: a job that was put back into a queue comes sooner than its dead one counts as dead."""
    before, until = _stamp(path), time.monotonic() + seconds
    if seconds > 0:
        print(
            f"lifecycle: run '{path.parent}' is held by {owner.who(holder)}, which cannot be looked at from here; "
            f"waiting up to {seconds:.0f} s for a sign of life",
            file=sys.stderr,
        )
    while time.monotonic() < until:
        if owner.read(path) != holder or _stamp(path) != before:
            return owner.read(path) is not None
        time.sleep(min(1.0, BEAT_S))
    return False


def _stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _clear(path: Path, holder: dict[str, Any], me: dict[str, Any]) -> None:
    """Remove the lock of a dead process, unless another was first. One process at a time may, or a slow one would
    remove the lock that a fast one has just made."""
    guard = path.with_name(GUARD)
    if not _made(guard, me):
        other, age = owner.read(guard), _age(guard)
        killed = other and _can_be_looked_at(other, me) and not _lives(other)
        if killed or (age is not None and age > STALE_S):  # within these few lines
            guard.unlink(missing_ok=True)
        time.sleep(0.02)
        return
    try:
        if owner.read(path) == holder:
            path.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def _made(path: Path, me: dict[str, Any]) -> bool:
    """Whether the lock is made by this call; False where there is one."""
    try:
        number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(number, "w") as file:
            file.write(json.dumps(me))
    except OSError:  # a full disk: leave no lock without a holder's name
        path.unlink(missing_ok=True)
        raise
    return True


def _beat(path: Path, me: dict[str, Any], over: threading.Event) -> None:
    """Touch the lock until `over`, or until the folder has another owner, which `owner.check` then says."""
    while not over.wait(BEAT_S):
        with contextlib.suppress(OSError):  # the file system may be away for a while
            if owner.lost(path) or over.is_set():
                return
            if owner.read(path) == me or (path.parent.is_dir() and _made(path, me)):
                os.utime(path)
                owner.signed(path.parent)


def _held(path: Path, holder: dict[str, Any], age: float) -> UserError:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"])) if holder else "unknown"
    here = holder.get("host") == socket.gethostname()
    stop = f"kill {holder['pid']}" + ("" if here else f" on {holder['host']}") if holder else "if you find it"
    if here and holder["pid"] == os.getpid():
        stop = "it is a run in another thread of this process"
    return UserError(
        f"run '{path.parent}' is at work: {owner.who(holder)} holds it since {when}, last sign of life {age:.0f} s "
        f"ago. Nothing was touched. Let it finish, stop it ({stop}), or choose another run=NAME. A process that is "
        f"gone is noticed at once on its own machine, elsewhere {STALE_S:.0f} s after its last sign of life ({path})"
    )


def _can_be_looked_at(holder: dict[str, Any], me: dict[str, Any]) -> bool:
    return bool(holder) and all(holder.get(key) == me[key] for key in ("host", "boot", "namespace"))


def _lives(holder: dict[str, Any]) -> bool:
    """Whether a process that can be looked at is there, and is not another that got its number since."""
    began = _began(holder["pid"])
    return began is not None and began == holder.get("began")


def _me() -> dict[str, Any]:
    """Who this process is, so that no other is taken for it: numbers of processes come again."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
        "boot": _first_line(Path("/proc/sys/kernel/random/boot_id")),
        "namespace": _link(Path("/proc/self/ns/pid")),  # containers of one machine count their processes apart
        "since": round(time.time(), 3),
        "token": uuid.uuid4().hex,
    }


def _began(pid: int) -> str | None:
    """When the process began, in the system's own count; "?" where only its life can be told; None if it is gone."""
    if Path("/proc/self/stat").exists():
        try:
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if state in "ZX" else rest[18]  # a zombie has ended, and its parent has not collected it yet
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it is another user's
        return "?"
    return "?"


def _age(path: Path) -> float | None:
    """Seconds since the last sign of life, by the clock of the file system; None where the lock is gone."""
    probe = path.with_name(f"{LOCK}.{uuid.uuid4().hex}")
    try:
        last = path.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except OSError:  # full or read-only
        now = time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return max(0.0, now - last)


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
