"""The program of a worker: it shuts itself off, then marks completions one after another.

    launcher -> first process of the new namespaces -> worker -> zygote -> programs (lifecycle.rewards.programs)

It is started with `WorkerStart` as JSON; messages go over its standard input and output, what stops its start to its
standard error. The launcher and the first process only wait, and hand on how the worker ended. Each process is killed
with the one before it: of a pool that is killed nothing stays.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from lifecycle.rewards.graders import GRADERS, READERS, prepare
from lifecycle.rewards.pool.task import FAILED, MARKED, TIMED_OUT, WorkerStart
from lifecycle.rewards.programs import zygote
from lifecycle.rewards.record import Answered, Grader
from lifecycle.rewards.sandbox import frames, kernel, landlock, namespaces, seccomp
from lifecycle.rewards.sandbox.limits import OverLimit, SandboxLimits, close_files, hold_to
from lifecycle.rewards.sandbox.scratch import empty

READ, WRITE = 0, 1


def main() -> None:
    """The launcher."""
    start = WorkerStart(**json.loads(sys.argv[1]))
    kernel.die_with_parent(start.parent)
    os.umask(0o022)
    nowhere = os.open(os.devnull, os.O_RDWR)
    user = namespaces.spare_user()
    layers = namespaces.enter() if start.namespaces else set()
    alive, life = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(life)
        _first(start, layers, user, alive, nowhere)
    close_files({life})
    _end_as(os.waitpid(child, 0)[1])


def _first(start: WorkerStart, layers: set[str], user: int | None, alive: int, nowhere: int) -> None:
    """The first process of the namespaces: builds their files, starts the worker, and waits for whoever ends there."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([alive], [], [], 0)[0]:  # the launcher is gone already
        os._exit(1)
    os.close(alive)
    if "processes" in layers and namespaces.build_root(start.readable, scratch_mb=start.limits["file_mb"]):
        layers.add("files")
    child = os.fork()
    if child == 0:
        try:
            _serve(start, layers, user, nowhere)
        finally:
            os._exit(1)
    close_files(set())
    while True:
        ended, status = os.wait()
        if ended == child:
            _end_as(status)


def _end_as(status: int) -> None:
    """End with a code that says how a child ended: 128 and its signal, or its own code."""
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _serve(start: WorkerStart, layers: set[str], user: int | None, nowhere: int) -> None:
    """The worker, until its standard input ends."""
    parent, limits = os.getppid(), SandboxLimits(**start.limits)
    scratch = namespaces.SCRATCH if "files" in layers else start.scratch
    if namespaces.become(user, start.readable, scratch):
        layers.add("user")
    kernel.drop_capabilities()
    kernel.die_with_parent(parent)  # a new user has to ask again
    hold_to(limits)
    if landlock.restrict(start.readable, scratch):
        layers.add("landlock")
    if seccomp.forbid(program=False):
        layers.add("calls")
    os.environ.update(HOME=scratch, TMPDIR=scratch)
    os.chdir(scratch)
    os.dup2(nowhere, zygote.ERRORS)
    zygote.start(limits, scratch, forbids_processes="calls" in layers)
    sys.path += start.packages
    prepare(start.graders)
    known = {**GRADERS, **READERS}
    frames.write(WRITE, sorted(layers))
    while True:
        try:
            name, completion, record = frames.read(READ)
        except EOFError:
            return
        frames.write(WRITE, marked(known[name], completion, Answered(**record), limits))
        empty(scratch)


def in_words(error: Exception) -> str:
    """What a grader raised."""
    return f"{type(error).__name__}: {error}"


def marked(
    grader: Grader,
    completion: str,
    record: Answered,
    limits: SandboxLimits,
    words: Callable[[Exception], str] = in_words,
) -> list[Any]:
    """State, mark and text. A grader that computes for too long ends the worker by a signal, which needs no Python to
    run; the pool knows the signal. What a grader raises is told, in `words`, for the pool to count."""
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
    try:
        return [MARKED, grader(completion, record), ""]
    except (OverLimit, MemoryError, RecursionError) as error:
        return [TIMED_OUT, None, type(error).__name__]
    except Exception as error:
        return [FAILED, None, words(error)[:500]]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
