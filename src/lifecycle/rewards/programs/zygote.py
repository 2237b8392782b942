"""The process that programs are forked from: it knows no test and no expected output, so they cannot know any.

    begin(program)         a program that is asked for values over a socket (`wire`), until `end`
    run(program, text)     a program that reads `text` from its standard input and writes to its standard output

A worker has one; the judge of a completion, which knows the tests, speaks with it over the worker's socket.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass

from lifecycle.rewards.programs import solution
from lifecycle.rewards.sandbox import frames, kernel
from lifecycle.rewards.sandbox.limits import SandboxLimits, close_files

ERRORS = 2
"""The descriptor that leads nowhere."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a program ended. status: its code; below 0, the signal that killed it. cpu_s: seconds that it computed.
    written: to its standard output; None where it could not be read as text."""

    status: int
    cpu_s: float
    written: str | None = None


class Zygote:
    """The worker's side. limits: of every program."""

    def __init__(self, sock: socket.socket, limits: SandboxLimits) -> None:
        self._sock, self.limits = sock, limits

    def begin(self, program: str) -> int:
        """WorkerStart a program; the descriptor of a socket to it."""
        ours, theirs = socket.socketpair()
        frames.write(self._sock.fileno(), ["begin", program])
        frames.read(self._sock.fileno())  # ready for the socket
        socket.send_fds(self._sock, [b"."], [theirs.fileno()])
        theirs.close()
        return ours.detach()

    def end(self) -> Ended:
        """Kill what was begun, where it still runs."""
        frames.write(self._sock.fileno(), ["end"])
        return Ended(**frames.read(self._sock.fileno()))

    def run(self, program: str, text: str) -> Ended:
        """Run a program to its end."""
        frames.write(self._sock.fileno(), ["run", program, text])
        return Ended(**frames.read(self._sock.fileno()))


_here: Zygote | None = None


def start(limits: SandboxLimits, scratch: str, *, forbids_processes: bool) -> None:
    """Fork the zygote of this process; forbids_processes: a filter of system calls does, so threads may be allowed."""
    global _here
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    if os.fork() == 0:
        kernel.die_with_parent(parent)
        for fd in (0, 1):  # the pool's
            os.dup2(ERRORS, fd)
        close_files({0, 1, 2, theirs.fileno()})
        try:
            _Forking(theirs, limits, scratch, forbids_processes).serve()
        finally:
            os._exit(1)
    theirs.close()
    _here = Zygote(ours, limits)


def here() -> Zygote:
    """The zygote of this process."""
    if _here is None:
        raise RuntimeError(
            "programs run in a worker of a pool alone (lifecycle.rewards.pool), never in another process"
        )
    return _here


class _Forking:
    """The zygote's side."""

    def __init__(self, sock: socket.socket, limits: SandboxLimits, scratch: str, forbids_processes: bool) -> None:
        self._sock, self._limits, self._scratch = sock, limits, scratch
        self._forbids_processes = forbids_processes
        self._begun: int | None = None

    def serve(self) -> None:
        """Until the worker is gone."""
        fd = self._sock.fileno()
        while True:
            try:
                what, *given = frames.read(fd)
            except EOFError:
                os._exit(0)
            if what == "begin":
                self._begin(*given)
            elif what == "run":
                frames.write(fd, self._run(*given))
            else:
                assert self._begun is not None
                os.kill(self._begun, signal.SIGKILL)
                frames.write(fd, _ended(self._begun))
                self._begun = None

    def _begin(self, program: str) -> None:
        frames.write(self._sock.fileno(), "ready")
        _, (fd, *_), _, _ = socket.recv_fds(self._sock, 1, 1)
        self._begun = self._fork({0: ERRORS, 1: ERRORS, solution.ASKED: fd})
        if self._begun == 0:
            solution.serve(program)
        os.close(fd)

    def _run(self, program: str, text: str) -> dict[str, object]:
        given, written = self._file(text), self._file("")
        child = self._fork({0: given, 1: written})
        if child == 0:
            solution.run(program)
        ended = _ended(child)
        size = os.fstat(written).st_size
        found = os.pread(written, min(size, frames.LARGEST // 8), 0).decode("utf-8", "replace")
        os.close(given)
        os.close(written)
        return {**ended, "written": found}

    def _file(self, text: str) -> int:
        """A file without a name, with `text`, to be read from its beginning."""
        path = os.path.join(self._scratch, ".standard")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(path)
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            data = data[os.write(fd, data) :]
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def _fork(self, files: dict[int, int]) -> int:
        """A process for a program, with these descriptors and no other; there it returns 0."""
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            kernel.die_with_parent(parent)
            solution.settle(files, self._limits, self._scratch, forbids_processes=self._forbids_processes)
        return child


def _ended(child: int) -> dict[str, float | int]:
    _, status, used = os.wait4(child, 0)
    return {"status": os.waitstatus_to_exitcode(status), "cpu_s": used.ru_utime + used.ru_stime}
