"""Landlock: which folders a process may read and write, by the kernel's own guard. It needs no rights, and cannot be
taken off; kernels have it from 5.13 on, where it is switched on."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence

from lifecycle.rewards.sandbox import kernel

CREATE, ADD, RESTRICT = 444, 445, 446  # system calls, on every machine
ASK_VERSION, BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
FIRST_RIGHTS, MOVE, TRUNCATE, DEVICE = (1 << 13) - 1, 1 << 13, 1 << 14, 1 << 15
TCP, OUTSIDE = 0b11, 0b11
"""Connecting and listening; sockets without a file, and signals, of processes outside."""


def restrict(readable: Sequence[str], scratch: str) -> bool:
    """Keep this process, and those it starts, to reading the one and using the other; whether the kernel does."""
    version = kernel.call(CREATE, None, 0, ASK_VERSION)
    if version < 1:
        return False
    files = FIRST_RIGHTS | (MOVE if version > 1 else 0) | (TRUNCATE if version > 2 else 0)
    files |= DEVICE if version > 4 else 0
    handled = [files, *([TCP] if version > 3 else []), *([OUTSIDE] if version > 5 else [])]
    rules = kernel.call(CREATE, struct.pack(f"{len(handled)}Q", *handled), 8 * len(handled), 0)
    if rules < 0:
        return False
    for path in readable:
        _allow(rules, path, EXECUTE | READ_FILE | READ_FOLDER)
    _allow(rules, scratch, files)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    done = kernel.call(RESTRICT, rules, 0) == 0
    os.close(rules)
    return done


def _allow(rules: int, path: str, rights: int) -> None:
    """A path that is not there needs no rule."""
    if not os.path.exists(path):
        return
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
    kernel.call(ADD, rules, BENEATH, struct.pack("<Qi", rights, place), 0)
    os.close(place)
