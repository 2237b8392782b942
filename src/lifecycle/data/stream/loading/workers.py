"""Processes that read ahead: each fills a ring of shared slots, so that rows are neither pickled nor piped.

A part's rows go into the next slot, its small remainder through a pipe; the main process gives a slot back once it has
copied the rows. A message of torch's DataLoader costs several times the making of a prepared step: its sending thread
competes with the packing for the interpreter, and each tensor costs a file and a mapping.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import mmap
import multiprocessing as mp
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lifecycle.errors import UserError
from lifecycle.system.signals import end_with_parent

Part = tuple[NDArray[np.int32], Any]  # rows of one step, and what belongs to them
Produce = Callable[[Callable[[int, int, int], None]], Iterator[Part]]  # called with `reading(source, row, line)`
END_S = 5.0  # seconds that a worker has to end by itself


class WorkerDied(RuntimeError):
    """A worker process failed, or ended without an error message."""


class Worker:
    """One process that runs `produce` ahead of its reader, at most `slots` parts of `slot_values` int32 each.

    Raises where the process cannot be started; `receive` says what it may raise.
    """

    def __init__(self, produce: Produce, *, slots: int, slot_values: int) -> None:
        fork = mp.get_context("fork")  # the slots are inherited: memory without a name or /dev/shm's limit
        self._slots = _shared(slots * slot_values, np.int32).reshape(slots, slot_values)
        self._at = _shared(4, np.int64)  # source, row and line that the worker is reading; whether it is to stop
        self._at[:] = (-1, -1, -1, 0)
        self._free = fork.Semaphore(slots)
        self._receiver, sender = fork.Pipe(duplex=False)
        self._number = 0
        self._process = fork.Process(target=self._run, args=(produce, sender, os.getpid()), daemon=True)
        self._process.start()
        sender.close()  # the worker holds the only other end: its death is the end of the pipe

    @property
    def last_read(self) -> tuple[int, int, int]:
        """Source, row and line that the worker was last reading; -1 before the first."""
        source, row, line, _ = self._at.tolist()
        return source, row, line

    def receive(self) -> Part | None:
        """The next part, or None after the last; its rows are good until `release`.

        Raises the `UserError` that the worker met, and `WorkerDied` with its traceback for any other end.
        """
        try:
            message = self._receiver.recv()
        except EOFError:
            self._process.join()
            raise WorkerDied(f"a loader worker (pid {self._process.pid}) {_end(self._process.exitcode)}.") from None
        if isinstance(message, UserError):
            raise message
        if isinstance(message, str):
            raise WorkerDied(f"a loader worker (pid {self._process.pid}) failed:\n{message}")
        if message is None:
            return None
        shape, rest = message
        return self._slot(shape), rest

    def release(self) -> None:
        """The rows of the last part are no longer needed."""
        self._number += 1
        self._free.release()

    def stop(self) -> None:
        """Ask the process to end between two parts."""
        self._at[3] = 1
        self._free.release()

    def join(self) -> None:
        """Wait for a process that was asked to stop, and kill it after `END_S` seconds."""
        until = time.monotonic() + END_S
        with contextlib.suppress(EOFError, OSError):
            while self._receiver.poll(max(0.0, until - time.monotonic())):
                self._receiver.recv_bytes()  # it may be waiting for room in the pipe
        self._receiver.close()
        self._process.kill()
        self._process.join()

    def _slot(self, shape: tuple[int, ...]) -> NDArray[np.int32]:
        return self._slots[self._number % len(self._slots), : int(np.prod(shape))].reshape(shape)

    def _run(self, produce: Produce, sender: Any, parent: int) -> None:
        torch.set_num_threads(1)
        gc.freeze()  # what it inherited stays: a collection would walk all of torch, and copy the pages that are shared
        end_with_parent(parent)
        # A signal to the process group is for the main process, which ends its workers itself.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._receiver.close()
        last: UserError | str | None = None
        try:
            self._fill(produce, sender)
        except UserError as fault:  # sent as an object: raised here it would be printed as a traceback
            last = fault
        except Exception:
            last = traceback.format_exc()
        with contextlib.suppress(BrokenPipeError):  # the main process has ended
            if not self._at[3]:
                sender.send(last)

    def _fill(self, produce: Produce, sender: Any) -> None:
        def reading(source: int, row: int, line: int) -> None:
            self._at[:3] = (source, row, line)

        for rows, rest in produce(reading):
            self._free.acquire()
            if self._at[3]:
                return
            self._slot(rows.shape)[...] = rows
            sender.send_bytes(pickle.dumps((rows.shape, rest), pickle.HIGHEST_PROTOCOL))
            self._number += 1


class Workers:
    """Several workers read in step: `parts()` yields one part of each, and they end together."""

    def __init__(self, produce: Sequence[Produce], *, slots: int, slot_values: int) -> None:
        self.all = [Worker(one, slots=slots, slot_values=slot_values) for one in produce]

    def parts(self) -> Iterator[list[Part]]:
        """One part of every worker, in order, until the first has no more; good until the next is asked for."""
        # Workers ignore SIGTERM, by which multiprocessing would end them when Python exits: they are stopped before.
        atexit.register(self.close)
        try:
            while None not in (given := [worker.receive() for worker in self.all]):
                yield [part for part in given if part is not None]
                for worker in self.all:
                    worker.release()
        finally:
            self.close()
            atexit.unregister(self.close)

    def close(self) -> None:
        """End all processes."""
        for worker in self.all:
            worker.stop()
        for worker in self.all:
            worker.join()


def _shared(count: int, kind: type[np.integer[Any]]) -> NDArray[Any]:
    """Memory that this process shares with those that it will fork."""
    return np.frombuffer(mmap.mmap(-1, max(count, 1) * np.dtype(kind).itemsize), kind)[:count]


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name}): out of memory, if nobody sent it"
    return f"ended with exit code {code}"
