"""Time from a cursor to the next batch, early and late in a long stream: it must not grow with the step.

    python -m benchmarks.resume

The corpora of benchmarks/data.py in 8 logical streams, 2 loader workers. `first` is a start from nothing; `step N` goes
on after N steps of 16,384 tokens.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.common import main, peak_mb, spread
from benchmarks.data import CACHE, data_module
from lifecycle.batch import Cursor

STEPS = (10, 100, 1000)
VARIANTS = {"raw": "ours", "prepared": "ours"}


def measure(variant: str, runs: int) -> dict[str, Any]:
    folder = CACHE / "prepared"
    place = str(folder) if variant == "prepared" else None
    cursors: dict[int, Cursor] = {}
    data = data_module(place)
    for batch in data.train_dataloader():
        if batch.cursor.step in STEPS:
            cursors[batch.cursor.step] = batch.cursor
        if batch.cursor.step == max(STEPS):
            break
    found = {"first": spread([until_batch(place, None) for _ in range(runs)], 3)}
    for step in STEPS:
        found[f"step {step}"] = spread([until_batch(place, cursors[step]) for _ in range(runs)], 3)
    return {"seconds": found, "peak_rss_mb": round(peak_mb())}


def until_batch(place: str | None, cursor: Cursor | None) -> float:
    data = data_module(place)
    if cursor is not None:
        data.consumed(cursor)
        data.load_state_dict(data.state_dict())
    started = time.perf_counter()
    batches = iter(data.train_dataloader())
    next(batches)
    seconds = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    return seconds


if __name__ == "__main__":
    main("benchmarks.resume", VARIANTS, measure, __doc__ or "", runs=5)
