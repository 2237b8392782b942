"""The process of a program that a model wrote. It holds the program, and a socket or its standard files; nothing else.

What the program does to this process, which is its own, changes no verdict: values alone leave it.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from types import ModuleType
from typing import Any, NoReturn

from lifecycle.rewards.programs.wire import Gone, Peer
from lifecycle.rewards.sandbox import seccomp
from lifecycle.rewards.sandbox.limits import SandboxLimits, close_files, hold_program_to

ASKED = 3
"""The descriptor of the socket."""
NAME = "<program>"


def settle(files: dict[int, int], limits: SandboxLimits, scratch: str, *, forbids_processes: bool) -> None:
    """Take `files` (what each descriptor becomes a copy of), close all others, and give up what a program must not
    have. Its random numbers are the same each time."""
    copies = {wanted: os.dup(fd) for wanted, fd in files.items()}
    lowest = max(files) + 1
    copies = {wanted: _above(fd, lowest) for wanted, fd in copies.items()}
    for wanted, fd in copies.items():
        os.dup2(fd, wanted)
    close_files({0, 1, 2, *files})
    os.chdir(scratch)
    random.seed(0)
    hold_program_to(limits, may_have_threads=forbids_processes)
    seccomp.forbid(program=True)


def _above(fd: int, least: int) -> int:
    """A copy of a descriptor that stands in nobody's way."""
    while fd < least:
        fd = os.dup(fd)
    return fd


def serve(program: str) -> NoReturn:
    """Execute a program, then do what the judge asks of what it defines."""
    peer = Peer(ASKED, may_ask_all=True)
    space: dict[str, Any] = {"__name__": "program"}
    try:
        try:
            exec(compile(program, NAME, "exec"), space)
        except BaseException as error:
            peer.send("raised", type(error).__name__, "")
            os._exit(0)
        peer.send("answer", peer.encode(_names(space)))
        peer.serve()
    except Gone:
        pass
    os._exit(0)


def _names(space: dict[str, Any]) -> list[tuple[str, str, str, Any]]:
    """What the program defines: name, the module of Python where it comes from, its name there, and itself."""
    found = list[tuple[str, str, str, Any]]()
    for name, held in list(space.items()):
        home = getattr(held, "__module__", None)
        if name.startswith("__"):
            continue
        if isinstance(held, ModuleType):
            found.append((name, held.__name__, "", None))
        elif callable(held) and isinstance(home, str) and home.partition(".")[0] in sys.stdlib_module_names:
            found.append((name, home, getattr(held, "__qualname__", name), held))
        else:
            found.append((name, "", "", held))
    return found


def run(program: str) -> NoReturn:
    """Execute a program as Python would as a script, with its standard input and output."""
    code = 0
    try:
        exec(compile(program, NAME, "exec"), {"__name__": "__main__"})
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        code = 1
    try:
        sys.stdout.flush()
    except BaseException:  # a program may have closed it, or put its own there
        code = code or 1
    os._exit(code & 0xFF)
