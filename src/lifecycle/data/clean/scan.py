"""One pass over the rows of a source with several processes, in the order of the rows.

    for result, position in scan(source, work, processes=4):
        ...                    # what `work` made of the next rows, and where the pass goes on from

This process reads and splits the files; the others run `work`. Results come in the order of the rows whatever the
number of processes, so an interrupted pass continues from the position of the last result that was kept.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

from lifecycle.data.clean.source import Source
from lifecycle.data.clean.walk import walk_rows
from lifecycle.data.read.files.listing import is_remote
from lifecycle.data.read.row import Position, RawRow
from lifecycle.errors import UserError
from lifecycle.system.signals import end_with_parent

Result = TypeVar("Result")
Work = Callable[[Source, list[RawRow]], Result]
Batch = tuple[list[RawRow], Position]  # rows, and where the pass goes on after them

ROWS_AT_ONCE = 256
BYTES_AT_ONCE = 2 << 20
REPORT_EVERY_S = 10.0
PRELOADED = [
    "lifecycle.data.clean.exact_duplicates",
    "lifecycle.data.clean.near_duplicates",
    "lifecycle.data.clean.held_out",
    "lifecycle.data.survey.row_stats",
]  # imported once for all processes


def refuse_remote(source: Source, key: str) -> None:
    """Raise UserError where a pass would read the source over the network; `key` is what asks for the pass."""
    if remote := [file.url for file in source.files if is_remote(file.url)]:
        raise UserError(
            f"data.sources.{source.name}.{key} reads the whole source first, and {remote[0]} is remote: "
            "run stage=prepare on local copies and train with data.prepared=RUN, or switch the filter off"
        )


def scan(
    source: Source,
    work: Work[Result],
    *,
    processes: int,
    start: Position | None = None,
    doing: str = "reading",
    raws: Iterable[RawRow] | None = None,
) -> Iterator[tuple[Result, Position]]:
    """`work(source, rows)` for all rows from `start` that are not left out, some hundred at once, in order.

    work: must be picklable. doing: what progress lines on stderr call the pass. raws: the rows to read; None: all.
    Each result comes with the position from which the pass continues after its rows.
    """
    reported = started = time.monotonic()
    batches = _batches(_all_rows(source, start or Position(0, 0, 0)) if raws is None else raws)
    few = list(islice(batches, processes))  # a source of so few rows is not worth the processes
    if len(few) < processes or processes <= 1:
        results: Iterator[tuple[Result, Position]] = (
            (work(source, batch), position) for batch, position in chain(few, batches)
        )
    else:
        results = _pooled(source, work, chain(few, batches), processes)
    for result, position in results:
        yield result, position
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            place = f"file {min(position.file + 1, len(source.files))} of {len(source.files)}, row {position.row:,}"
            sys.stderr.write(f"data.sources.{source.name}: {doing}, {place}, {reported - started:.0f} s\n")


def _all_rows(source: Source, begin: Position) -> Iterable[RawRow]:
    leaves_out = source.leaves_out()
    return walk_rows(source, begin, wanted=lambda ordinal: not leaves_out(ordinal))


def _batches(raws: Iterable[RawRow]) -> Iterator[Batch]:
    batch, size = list[RawRow](), 0
    for raw in raws:
        batch.append(raw)
        size += len(raw.payload) if isinstance(raw.payload, bytes) else 0
        if len(batch) == ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield batch, raw.next
            batch, size = [], 0
    if batch:
        yield batch, batch[-1].next


def _pooled(
    source: Source, work: Work[Result], batches: Iterator[Batch], processes: int
) -> Iterator[tuple[Result, Position]]:
    # Not forked from this process: the threads of the libraries that it has used would be missing in the copies, and a
    # call of such a library would wait for them for ever.
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload(PRELOADED)
    waiting: deque[tuple[Future[Result], Position]] = deque()
    with ProcessPoolExecutor(processes, clean, initializer=_begin, initargs=(source, work)) as pool:
        try:
            for batch, position in batches:
                waiting.append((pool.submit(_do, batch), position))
                if len(waiting) > 2 * processes:  # enough to keep all of them busy, few enough to fit in memory
                    future, position = waiting.popleft()
                    yield future.result(), position
            while waiting:
                future, position = waiting.popleft()
                yield future.result(), position
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_given: list[Any] = []  # in a process of the pool: the source and the work, sent once and not with every batch


def _begin(source: Source, work: Work[Any]) -> None:
    end_with_parent(os.getppid())
    _given[:] = source, work


def _do(batch: list[RawRow]) -> Any:
    source, work = _given
    return work(source, batch)
