"""System calls that Python has no function for. Each returns whether the kernel did it."""

from __future__ import annotations

import ctypes
import os
import signal

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2


def prctl(option: int, value: int) -> bool:
    """As the system call of this name."""
    return LIBC.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0


def die_with_parent(parent: int) -> None:
    """Be killed as soon as the thread is gone that started this process; end now where `parent` already is."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def unshare(flags: int) -> bool:
    """As the system call of this name."""
    return LIBC.unshare(flags) == 0


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str = "") -> bool:
    """As the system call of this name."""
    kind_ = None if kind is None else kind.encode()
    return LIBC.mount(os.fsencode(source), os.fsencode(target), kind_, ctypes.c_ulong(flags), options.encode()) == 0


def unmount(target: str) -> bool:
    """Now from the tree, and for good when nobody uses it."""
    return LIBC.umount2(os.fsencode(target), MNT_DETACH) == 0


def call(number: int, *values: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """System call `number`; below 0: refused."""
    as_c = [ctypes.c_long(value) if isinstance(value, int) else value for value in values]
    return int(LIBC.syscall(ctypes.c_long(number), *as_c))


def drop_capabilities() -> bool:
    """Give up every right of an administrator."""
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    return LIBC.capset(head, (ctypes.c_uint32 * 6)()) == 0
