"""Namespaces: processes, network and files of a worker's own, where the kernel lets this user make them.

    processes   what is started here sees and signals nothing outside, and ends with the first process
    network     none, not even to this machine
    files       /usr, the libraries and the Python that runs, to read; /scratch, in memory and small, to write; no /proc

An administrator needs no namespace of users, and a worker of his goes on as a user whom nothing belongs to.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lifecycle.rewards.sandbox import kernel
from lifecycle.rewards.sandbox.limits import MB

NOBODY = 1_900_000_000
"""Users from here on belong to workers, each to one, so that its processes are counted apart."""
ROOT = "/proc"
"""Where the new root is put together: a folder that is always there, and holds none of what is mounted in it."""
SCRATCH = "/scratch"


def enter() -> set[str]:
    """Leave the namespaces of the parent; the names of the new ones. Those of processes hold for the next child."""
    inner = kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWNS
    user, group = os.geteuid(), os.getegid()
    if user != 0 or not kernel.unshare(inner):
        if not kernel.unshare(inner | kernel.CLONE_NEWUSER):
            return set()
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        return {"users", "processes", "network"}
    return {"processes", "network"}


def build_root(readable: Sequence[str], *, scratch_mb: int) -> bool:
    """See only the paths `readable` from now on, and a small /scratch; whether the kernel did."""
    if not kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE):
        return False
    hidden = kernel.MS_NOSUID | kernel.MS_NODEV
    if not kernel.mount("none", ROOT, "tmpfs", hidden, "size=1m,mode=755"):
        return False
    for path in readable:
        _show(path)
    scratch = f"{ROOT}{SCRATCH}"
    os.makedirs(scratch, exist_ok=True)
    done = kernel.mount("none", scratch, "tmpfs", hidden, f"size={scratch_mb * MB},nr_inodes=1024,mode=700")
    if not os.path.lexists(f"{ROOT}/tmp"):
        os.symlink(SCRATCH[1:], f"{ROOT}/tmp")
    kernel.mount("none", ROOT, flags=kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | hidden)
    os.chdir(ROOT)
    number = {"x86_64": 155, "aarch64": 41}.get(os.uname().machine)
    if number is None or kernel.call(number, b".", b".") < 0:
        os.chroot(".")
    else:
        done = kernel.unmount(".") and done
    os.chdir("/")
    return done


def _show(path: str) -> None:
    """A folder, or a link to one, at its place beneath the new root."""
    target = f"{ROOT}{path}"
    if os.path.lexists(target) or not os.path.isdir(path):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    os.mkdir(target)
    for flags in (kernel.MS_BIND, kernel.MS_BIND | kernel.MS_REC):  # a tree with locked mounts is shown whole or not
        if kernel.mount(path, target, flags=flags):
            kept = os.statvfs(target).f_flag & (kernel.MS_NOSUID | kernel.MS_NODEV | 8)
            kernel.mount("none", target, flags=kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_RDONLY | kept)
            return


def spare_user() -> int | None:
    """Of an administrator's process: the number of a user that owns nothing; None where there is none."""
    if os.geteuid() != 0:
        return None
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    wanted = (NOBODY + os.getpid() % 1_000_000, 65534)
    return next((user for user in wanted for at, _, n in ranges if int(at) <= user < int(at) + int(n)), None)


def become(user: int | None, readable: Sequence[str], scratch: str) -> bool:
    """Go on as `user`; whether that is so. Not where that user could not read the Python that runs."""
    if user is None or not all(_is_open_to_all(Path(path)) for path in readable if os.path.isdir(path)):
        return False
    os.chown(scratch, user, user)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    return True


def _is_open_to_all(path: Path) -> bool:
    return all(place.stat().st_mode & 0o5 == 0o5 for place in (path, *path.parents))
