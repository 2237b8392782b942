"""GradingPool: workers that mark completions, each within its limits, in the order that they were given.

    with GradingPool(graders=["choice", "code"], workers=2, limits=SandboxLimits(...)) as pool:
        outcomes = pool.map([Task(grader="choice", completion="(B)", record=Answered(answer="B")), ...])

A worker begins as a new interpreter, never as a copy of this process with its GPU, threads, files and secrets. One that
does not answer in time is killed, with all that it started, and another takes its place.
"""

from __future__ import annotations

import selectors
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from lifecycle.errors import UserError
from lifecycle.rewards.pool.task import FAILED, MARKED, TIMED_OUT, Outcome, Task
from lifecycle.rewards.pool.worker_process import WorkerProcess
from lifecycle.rewards.sandbox.limits import SandboxLimits

LOOK_S = 0.5
"""Seconds between two looks at the deadlines, at most."""
STARTS = 3
"""Workers that may end at their start, one after another, before that is a fault of the whole."""
PATIENCE = 4
"""Completions on which a function of the user's own may take too long before it has marked one."""


class GradingPool:
    """Starts no process before the first tasks. graders: names of those it will be asked for. namespaces: whether
    workers ask the kernel for their own. own: whether graders are functions of the user's own, which are not shut
    off."""

    def __init__(
        self,
        *,
        graders: Sequence[str],
        workers: int,
        limits: SandboxLimits,
        namespaces: bool = True,
        own: bool = False,
    ) -> None:
        self._graders, self._most, self._limits, self._namespaces = tuple(graders), workers, limits, namespaces
        self._own, self._slow, self._known_to_mark = own, Counter[str](), set[str]()
        self._workers: list[WorkerProcess] = []
        self._busy = threading.Lock()
        # The kernel ends a worker with the thread that started it, so one thread starts all and lasts as long.
        self._starter = ThreadPoolExecutor(1, "start-graders")
        self._failed_starts = 0
        self._closed = weakref.finalize(self, _close, self._workers, self._starter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every worker."""
        self._closed()

    @property
    def layers(self) -> list[str]:
        """What the workers are shut off by on this machine; starts one where there is none."""
        with self._busy:
            if not self._workers:
                self._start()
            while self._workers[0].layers is None:
                self._turn([], [])
            return self._workers[0].layers

    @property
    def pids(self) -> list[int]:
        """Of the workers' first processes."""
        return [worker.pid for worker in self._workers]

    def map(self, tasks: Sequence[Task]) -> list[Outcome]:
        """The outcome of each task, in their order."""
        with self._busy:
            outcomes: list[Outcome | None] = [None] * len(tasks)
            waiting = list(range(len(tasks)))[::-1]
            while None in outcomes:
                while len(self._workers) < min(self._most, len(tasks)):
                    self._start()
                for worker in self._workers:
                    if worker.layers is not None and worker.number is None and waiting:
                        number = waiting.pop()
                        worker.give(number, tasks[number])
                self._turn(tasks, outcomes)
            return [outcome for outcome in outcomes if outcome is not None]

    def _start(self) -> None:
        start = self._starter.submit(
            WorkerProcess, self._graders, self._limits, namespaces=self._namespaces, own=self._own
        )
        self._workers.append(start.result())

    def _turn(self, tasks: Sequence[Task], outcomes: list[Outcome | None]) -> None:
        """Send and receive what can be, once something can be, and end the workers whose time is over."""
        now = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
                if worker.send():
                    selector.register(worker.stdin, selectors.EVENT_WRITE, worker)
            busy = [worker.ends_at for worker in self._workers if worker.number is not None or worker.layers is None]
            ready = {key.data for key, _ in selector.select(max(0.0, min([LOOK_S, *(end - now for end in busy)])))}
        for worker in list(self._workers):
            if worker in ready:
                self._hear(worker, tasks, outcomes)
            elif time.monotonic() > worker.ends_at and (worker.number is not None or worker.layers is None):
                self._replace(worker, tasks, outcomes, by_itself=False)

    def _hear(self, worker: WorkerProcess, tasks: Sequence[Task], outcomes: list[Outcome | None]) -> None:
        try:
            message = worker.receive()
        except EOFError:
            self._replace(worker, tasks, outcomes, by_itself=True)
            return
        if message is None:
            return
        if worker.layers is None:
            worker.layers, self._failed_starts = message, 0
        elif worker.number is not None:
            state, mark, text = message
            if state == MARKED:
                self._known_to_mark.add(tasks[worker.number].grader)
            outcomes[worker.number], worker.number = Outcome(state=state, mark=mark, text=text), None

    def _replace(
        self, worker: WorkerProcess, tasks: Sequence[Task], outcomes: list[Outcome | None], *, by_itself: bool
    ) -> None:
        """End a worker that says no more, or nothing in time; `map` starts another where there is work."""
        self._workers.remove(worker)
        said = worker.errors() if worker.layers is None else ""
        code = worker.end(by_itself=by_itself)
        if worker.layers is None:
            self._failed_starts += 1
            if self._failed_starts == STARTS:
                raise UserError(
                    f"a worker that grades ended at its start (code {code}, memory_mb={self._limits.memory_mb}): "
                    f"{said or 'it said nothing'}"
                )
        elif worker.number is not None:
            timed_out = not by_itself or code in (128 + signal.SIGPROF, -signal.SIGPROF)
            text = "took too long" if timed_out else f"the worker ended with code {code}"
            outcomes[worker.number] = Outcome(state=TIMED_OUT if timed_out else FAILED, text=text)
            if timed_out and self._own:
                self._lose_patience(tasks[worker.number].grader)

    def _lose_patience(self, name: str) -> None:
        """A function that has taken too long again, and never marked anything, would take hours to say so."""
        self._slow[name] += 1
        if name not in self._known_to_mark and self._slow[name] == PATIENCE:
            raise UserError(
                f"the reward {name} took too long for each of the first {PATIENCE} answers, more than "
                f"stage.grading.cpu_s={self._limits.cpu_s} seconds of computing or stage.grading.wall_s="
                f"{self._limits.wall_s:g} in all: make it quicker (load what it needs when its module is imported), or "
                "give it more time by these keys"
            )


def _close(workers: list[WorkerProcess], starter: ThreadPoolExecutor) -> None:
    for worker in workers:
        worker.end(by_itself=False)
    workers.clear()
    starter.shutdown()
