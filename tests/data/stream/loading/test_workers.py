"""Laws of reading ahead: every part arrives once and in order, faults arrive as what they are, no process stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifecycle.data.stream.loading.workers import END_S, Part, WorkerDied, Workers
from lifecycle.errors import UserError

Reading = Callable[[int, int, int], None]


def counting(start: int, count: int, end: BaseException | None, reading: Reading, rest: int = 0) -> Iterator[Part]:
    for step in range(count):
        reading(start, step, 10 * step)
        yield np.full((2, 1 + step % 3), start + step, np.int32), {"step": step, "rest": b"x" * rest}
    if end is not None:
        raise end


def workers(*ends: BaseException | None, count: int = 20, slots: int = 3, rest: int = 0) -> Workers:
    produce = [partial(counting, 100 * w, count, end, rest=rest) for w, end in enumerate(ends)]
    return Workers(produce, slots=slots, slot_values=6)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("slots", [1, 2, 16])
def test_every_part_arrives_once_in_order_whatever_the_slots(slots: int) -> None:
    got = [[(rows.copy(), rest["step"]) for rows, rest in parts] for parts in workers(None, None, slots=slots).parts()]
    assert [[step for _, step in parts] for parts in got] == [[step, step] for step in range(20)]
    for step, parts in enumerate(got):
        for w, (rows, _) in enumerate(parts):
            assert np.array_equal(rows, np.full((2, 1 + step % 3), 100 * w + step))


def test_rows_stay_until_the_next_are_asked_for() -> None:
    reader = workers(None, count=5, slots=2).parts()
    for step in range(5):
        ((rows, _),) = next(reader)
        time.sleep(0.02)  # the worker may fill what is free, and no more
        assert (rows == step).all()
    assert next(reader, None) is None


def test_a_users_error_comes_as_itself_after_the_parts_before_it() -> None:
    reader = workers(UserError("source 'a' is used up"), None, count=4).parts()
    assert len([next(reader) for _ in range(4)]) == 4
    with pytest.raises(UserError, match="source 'a' is used up"):
        next(reader)


def test_a_crash_comes_with_the_workers_traceback() -> None:
    with pytest.raises(WorkerDied, match=r"(?s)failed:\nTraceback.*in counting.*KeyError: 'gone'"):
        list(workers(None, KeyError("gone")).parts())


def test_a_killed_worker_is_named_by_its_signal_and_what_it_read() -> None:
    pool = workers(None, None, slots=2)
    reader = pool.parts()
    for _ in range(2):
        next(reader)
    time.sleep(0.2)  # until it waits for a free slot
    os.kill(pool.all[1]._process.pid or 0, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="killed by signal 9"):
        list(reader)
    source, row, line = pool.all[1].last_read
    assert source == 100 and row >= 1 and line == 10 * row


@pytest.mark.parametrize("rest", [0, 2**20])
def test_an_early_end_leaves_no_process_and_waits_for_none(rest: int) -> None:
    """Also for a worker that stands in the middle of a message larger than the pipe."""
    pool = workers(None, None, None, count=10**6, rest=rest)
    reader: Any = pool.parts()
    next(reader)
    pids = [worker._process.pid or 0 for worker in pool.all]
    begun = time.monotonic()
    reader.close()
    assert time.monotonic() - begun < END_S
    assert all(gone(pid) for pid in pids)


def test_workers_end_when_their_run_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import test_workers as t\n"
        "pool = t.workers(None, None, count=10**6, rest=2**20); next(pool.parts())\n"
        "print(*(w._process.pid for w in pool.all), flush=True); time.sleep(60)\n"
    )
    words = [sys.executable, "-c", script, str(Path(__file__).parent)]
    errors = tmp_path / "errors"
    with errors.open("w") as file, subprocess.Popen(words, stdout=subprocess.PIPE, stderr=file, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(pids) == 2
    until = time.monotonic() + 20
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert errors.read_text() == ""
