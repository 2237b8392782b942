"""A worker as its pool sees it: a process, what is being sent to it and what has come from it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lifecycle
from lifecycle.rewards.pool.task import Task, WorkerStart
from lifecycle.rewards.sandbox import frames
from lifecycle.rewards.sandbox.limits import SandboxLimits
from lifecycle.rewards.sandbox.scratch import empty

CODE = "import sys; sys.path.append({!r}); from lifecycle.rewards.pool.worker import main; main()"
OWN_CODE = "import sys; sys.path[:] = {!r}; from lifecycle.rewards.pool.own_worker import main; main()"
"""Of functions of the user's own: they are looked for where this process looks."""
FLAGS = ("-P", "-s", "-S", "-B", "-X", "utf8")
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""All of it. Sets have the same order each time, so a resumed run gets the same marks."""
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64")
START_S, OWN_START_S = 60.0, 600.0
"""Seconds until a worker is ready, at most; of one that imports the user's own modules, which may load a model."""
LAST_S = 2.0
"""... and until one that is ending has ended."""


class WorkerProcess:
    """One worker. layers: what it is shut off by; None until it is ready. number: of the task that it works on. own:
    whether its graders are functions of the user's own."""

    def __init__(self, graders: Sequence[str], limits: SandboxLimits, *, namespaces: bool, own: bool = False) -> None:
        self._wall_s = limits.wall_s
        self._folder = tempfile.mkdtemp(prefix="lifecycle-")
        scratch = os.path.join(self._folder, "scratch")
        os.mkdir(scratch, 0o700)
        os.chmod(self._folder, 0o711)  # a worker may be another user
        home = os.path.realpath(Path(lifecycle.__file__).parents[1])
        packages = sorted({os.path.realpath(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")})
        python = sorted({os.path.realpath(prefix) for prefix in (sys.base_prefix, sys.base_exec_prefix)})
        start = WorkerStart(
            parent=os.getpid(),
            limits=asdict(limits),
            readable=[*SYSTEM, *python, *packages, home],
            packages=packages,
            scratch=scratch,
            graders=list(graders),
            namespaces=namespaces,
        )
        with open(os.path.join(self._folder, "errors"), "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *_code(home, own=own), json.dumps(asdict(start))],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if own else errors,  # what a user's own function prints is for the user
                env={**os.environ, **ENVIRONMENT} if own else ENVIRONMENT,
                cwd=None if own else "/",
                start_new_session=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self.pid, self.stdin, self.stdout = self._process.pid, self._process.stdin, self._process.stdout
        os.set_blocking(self.stdin.fileno(), False)
        os.set_blocking(self.stdout.fileno(), False)
        self.layers: list[str] | None = None
        self.number: int | None = None
        self.ends_at = time.monotonic() + (OWN_START_S if own else START_S)
        self._to_send, self._came = memoryview(b""), bytearray()

    def give(self, number: int, task: Task) -> None:
        """Begin a task."""
        record = {"answer": task.record.answer, "prompt": task.record.prompt, "meta": dict(task.record.meta)}
        self._to_send = memoryview(frames.packed([task.grader, task.completion, record]))
        self.number, self.ends_at = number, time.monotonic() + self._wall_s

    def send(self) -> bool:
        """Send what the pipe takes; whether there is more. A worker that has ended is found out by what it says."""
        if self._to_send:
            with suppress(BrokenPipeError, BlockingIOError):
                self._to_send = self._to_send[os.write(self.stdin.fileno(), self._to_send) :]
        return bool(self._to_send)

    def receive(self) -> Any:
        """The message that has come, where it is whole, else None. Raises EOFError where the worker has ended, or has
        sent what is no message."""
        with suppress(BlockingIOError):
            part = os.read(self.stdout.fileno(), 2**20)
            if not part:
                raise EOFError
            self._came += part
        if len(self._came) < frames.HEAD:
            return None
        try:
            end = frames.HEAD + frames.size(bytes(self._came[: frames.HEAD]))
            message = json.loads(bytes(self._came[frames.HEAD : end])) if len(self._came) >= end else None
        except ValueError as error:
            raise EOFError from error
        if message is not None:
            del self._came[:end]
        return message

    def end(self, *, by_itself: bool) -> int:
        """Kill it, with all that it started, and remove its folder; the code that it ended with. by_itself: it is
        ending, so wait for its own code."""
        until = time.monotonic() + (LAST_S if by_itself else 0)
        while not self._is_over() and time.monotonic() < until:
            time.sleep(0.001)
        with suppress(ProcessLookupError):  # not waited for yet, so the number is still its own
            os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        self.stdin.close()
        self.stdout.close()
        self._remove()
        return code

    def _is_over(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def errors(self) -> str:
        """What it said at its start."""
        return Path(self._folder, "errors").read_text(encoding="utf-8", errors="replace").strip()[-1000:]

    def _remove(self) -> None:
        """A process that is just being killed may write to the folder a last time."""
        for _ in range(50):
            try:
                empty(self._folder)
                os.rmdir(self._folder)
                return
            except OSError:
                time.sleep(0.01)
        shutil.rmtree(self._folder, ignore_errors=True)


def _code(home: str, *, own: bool) -> list[str]:
    """Flags and program of an interpreter."""
    return ["-c", OWN_CODE.format(sys.path)] if own else [*FLAGS, "-c", CODE.format(home)]
