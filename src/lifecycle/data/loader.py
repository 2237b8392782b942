"""From logical streams to the batches of one rank: workers share the streams out, the main process joins their rows.

A worker yields, step after step, the packed rows of its streams; joined in the order of the streams they are the same
rows whatever the number of workers, and over all ranks the same step whatever the number of ranks.
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lifecycle.batch import Cursor, StepBatch, TokenBatch
from lifecycle.data.plan import BatchPlan
from lifecycle.data.stream import Exhausted, State, Stream, arrays
from lifecycle.errors import UserError

COLUMNS = ("input_ids", "labels", "position_ids", "document_ids", "source_ids")
Part = tuple[torch.Tensor, dict[int, State]]  # one worker's rows of one step, (columns, B, T) int32, and its states
Message = tuple[torch.Tensor, list[tuple[int, ...]], list[dict[int, State]]]  # parts of some steps, end to end
OpenStream = Callable[[int, State | None, Callable[[int, int, int], None]], Stream]
MESSAGE_STEPS, MESSAGE_TOKENS = 4, 2**17  # a worker sends so much at once: the cost of a message is shared by its steps
PREFETCHED = 4  # messages of a worker: enough to hide a window being packed, few enough not to hold a long run's rows


@dataclass
class _Steps(IterableDataset[Message | UserError]):
    """What one worker gives: rows and states of its streams, from step `start` to `stop`, a few steps a message."""

    open_stream: OpenStream
    streams: Sequence[int]
    plan: BatchPlan
    start: int
    stop: int
    states: dict[int, State]
    status: torch.Tensor  # (workers, 3) shared: source, row and line that each worker is reading

    def __iter__(self) -> Iterator[Message | UserError]:
        """Messages, or as the last one the user's error: raised in a worker it would come out as a traceback."""
        waiting: list[Part] = []
        try:
            for step, part in enumerate(self._parts(), self.start):
                waiting.append(part)
                phase = self.plan.at(step)
                if len(waiting) >= min(MESSAGE_STEPS, MESSAGE_TOKENS / (phase.rows * phase.row_length)):
                    yield _message(waiting)
                    waiting = []
            error = None
        except UserError as fault:
            error = fault
        except Exhausted as end:
            error = UserError(_used_up(end.source))
        if waiting:
            yield _message(waiting)
        if error is not None:
            yield error

    def _parts(self) -> Iterator[Part]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        cell = self.status[number].numpy()

        def reading(source: int, row: int, line: int) -> None:
            cell[0], cell[1], cell[2] = source, row, line

        mine = {s: self.open_stream(s, self.states.get(s), reading) for s in self.streams[number::workers]}
        for step in range(self.start, self.stop):
            given = {s: stream.step(step) for s, stream in mine.items()}
            length = self.plan.at(step).row_length
            rows = arrays([row for rows, _ in given.values() for row in rows], length)
            yield torch.from_numpy(np.stack([rows[c] for c in COLUMNS])), {s: state for s, (_, state) in given.items()}


def _message(parts: list[Part]) -> Message:
    """One tensor for all: each tensor that leaves a worker costs a file descriptor and a mapping."""
    rows = [rows for rows, _ in parts]
    return torch.cat([r.flatten() for r in rows]), [tuple(r.shape) for r in rows], [states for _, states in parts]


def _parts_of(message: Message | UserError) -> list[Part]:
    if isinstance(message, UserError):
        raise message
    flat, shapes, states = message
    pieces = flat.split([math.prod(shape) for shape in shapes])
    return [(piece.view(shape), state) for piece, shape, state in zip(pieces, shapes, states, strict=True)]


class StepLoader:
    """One rank's batches, a `StepBatch` a step, from the step after `cursor` to `stop` (exclusive).

    `streams` are this rank's logical streams; `micro_rows(row_length)` the rows of a micro-batch.
    """

    def __init__(
        self,
        *,
        open_stream: OpenStream,
        streams: Sequence[int],
        source_names: Sequence[str],
        plan: BatchPlan,
        cursor: Cursor | None,
        stop: int,
        workers: int,
        micro_rows: Callable[[int, int], int],
        pin_memory: bool = False,
    ) -> None:
        self._workers = min(workers, len(streams))
        self._streams, self._names, self._plan, self._micro_rows = list(streams), list(source_names), plan, micro_rows
        self._start = cursor.step if cursor else 0
        self._stop = stop
        states = {s: dict(cursor.streams[s]) for s in streams} if cursor else {}
        self._status = torch.full((max(1, self._workers), 3), -1, dtype=torch.int64).share_memory_()
        self._dataset = _Steps(open_stream, self._streams, plan, self._start, stop, states, self._status)
        self._pin = pin_memory

    def __iter__(self) -> Iterator[StepBatch]:
        messages = self._messages()
        turns = max(1, self._workers)
        owners = [list(self._streams[w::turns]) for w in range(turns)]
        # Workers cut their messages at the same steps, so all run out at once, and messages come in turn.
        waiting: list[deque[Part]] = [deque() for _ in range(turns)]
        for step in range(self._start, self._stop):
            for parts in waiting:
                if not parts:
                    parts.extend(_parts_of(next(messages)))
            yield self._join(step, [parts.popleft() for parts in waiting], owners)

    def _messages(self) -> Iterator[Message | UserError]:
        if self._workers == 0:
            yield from self._dataset
            return
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=PREFETCHED,
            worker_init_fn=_quiet_worker,
        )
        handler = signal.getsignal(signal.SIGCHLD)
        iterator: Any = iter(loader)
        if threading.current_thread() is threading.main_thread():
            # torch's handler raises for a dead worker wherever the main thread is; the next batch finds it out in order
            signal.signal(signal.SIGCHLD, handler)
        # Workers do not listen to SIGTERM, by which multiprocessing would end them when Python exits: tell them first.
        atexit.register(iterator._shutdown_workers)
        try:
            yield from iterator
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RuntimeError(f"{error} {self._last_read()}") from error
        finally:
            iterator._shutdown_workers()
            atexit.unregister(iterator._shutdown_workers)

    def _last_read(self) -> str:
        at = [
            f"worker {w}: source '{self._names[source]}', row {row}, line {line}"
            for w, (source, row, line) in enumerate(self._status.tolist())
            if source >= 0
        ]
        return "It was last reading: " + ("; ".join(at) or "nothing yet")

    def _join(self, step: int, parts: list[Part], owners: list[list[int]]) -> StepBatch:
        """The rows of all workers in the order of the streams, cut into micro-batches."""
        phase = self._plan.at(step)
        states = {s: state for _, given in parts for s, state in given.items()}
        rows = torch.from_numpy(_in_order([rows.numpy() for rows, _ in parts], owners))
        if self._pin:
            rows = rows.pin_memory()
        whole = TokenBatch.of(dict(zip(COLUMNS, rows, strict=True)))
        count = len(whole.input_ids)
        size = self._micro_rows(phase.row_length, count)
        micro = [whole.rows(at, min(at + size, count)) for at in range(0, count, size)]
        cursor = Cursor(step=step + 1, streams={s: states[s] for s in self._streams})
        return StepBatch(step=step, micro=micro, cursor=cursor)


def _in_order(parts: list[NDArray[np.int32]], owners: list[list[int]]) -> NDArray[np.int64]:
    """(columns, B, T) of several workers as one, ordered by stream; every stream gives the same number of rows.

    In numpy: torch would share such small work out among threads that compete with the workers for the cores.
    """
    if len(parts) == 1:
        return parts[0].astype(np.int64)
    streams = [s for owned in owners for s in owned]
    columns, rows, length = parts[0].shape
    each = rows // len(owners[0])
    out = np.empty((columns, len(streams), each, length), np.int64)
    place = {s: i for i, s in enumerate(sorted(streams))}
    for part, owned in zip(parts, owners, strict=True):
        out[:, [place[s] for s in owned]] = part.reshape(columns, len(owned), each, length)
    return out.reshape(columns, -1, length)


def micro_batch_rows(micro_batch_tokens: int) -> Callable[[int, int], int]:
    """Rows of a micro-batch for (row length, rows of the rank's step): the largest divisor that fits the limit."""

    def rows(row_length: int, count: int) -> int:
        limit = micro_batch_tokens // row_length
        if limit < 1:
            raise UserError(
                f"hardware.micro_batch_tokens is {micro_batch_tokens}, less than one row of {row_length} tokens "
                "(stage.sequence_length): raise it"
            )
        return max(d for d in range(1, min(limit, count) + 1) if count % d == 0)

    return rows


def _used_up(source: str) -> str:
    return (
        f"data.sources.{source} has been read as often as its max_epochs allows, and the run goes on: raise "
        f"data.sources.{source}.max_epochs, lower its weight, shorten the run (stage.max_tokens), or go on without it "
        "(data.exhausted=drop). The last checkpoint is intact"
    )


def _end_with(parent: int) -> None:
    """End a worker whose run was killed: one that is sending would wait for ever, its siblings hold the pipe open."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _quiet_worker(worker: int) -> None:
    """One thread a worker; a signal to the process group is for the main process, which ends its workers itself."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
