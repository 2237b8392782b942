"""Which checkpoints stay: the last k, the best, the one that a guard may go back to, and the milestones. Runs after
every commit.

Lightning decides when to save; what it asks to be removed is ignored (`CommittedCheckpointIO.remove_checkpoint`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lifecycle.checkpoint.protocol import list_committed, remove, step_of, write_durable
from lifecycle.errors import UserError

BEST, SAFE = "best.json", "safe.json"


def keep(
    steps: Sequence[int], *, keep_last: int, marked: Collection[int | None], milestones: Sequence[int]
) -> set[int]:
    """Those of `steps` that stay."""
    if keep_last < 1:
        raise UserError(f"checkpoint.keep_last is {keep_last}; wanted at least 1, or a run could not be resumed")
    return set(sorted(steps)[-keep_last:]) | (set(steps) & {*milestones, *marked})


def prune(folder: Path, *, keep_last: int, milestones: Sequence[int], written: int | None = None) -> list[int]:
    """Delete the committed checkpoints in `folder` that need not stay, and name their steps.

    `written`: the step just committed; it stays even if a folder of a later step is there. While a marked step's own
    checkpoint is not committed yet, the one marked before it stays.
    """
    paths = {step_of(path) or 0: path for path in list_committed(folder)}
    marks = [mark for mark in (_read(folder / BEST), _read(folder / SAFE)) if mark]
    marked = [mark["step"] if mark["step"] in paths else mark["previous"] for mark in marks]
    stay = keep(list(paths), keep_last=keep_last, marked=marked, milestones=milestones)
    if written is not None:
        stay.add(written)
    gone = sorted(paths.keys() - stay)
    for step in gone:
        remove(paths[step])
    return gone


def mark_best(folder: Path, step: int, value: float, metric: str = "valid/loss") -> None:
    """Point best.json to `step`, whose checkpoint is saved next; `value` is what it reached."""
    _mark(folder, BEST, step, value=value, metric=metric)


def mark_safe(folder: Path, step: int) -> None:
    """Point safe.json to `step`, whose checkpoint is saved next: the last one that a guard may go back to."""
    _mark(folder, SAFE, step)


def read_best(folder: Path) -> dict[str, Any] | None:
    """step, value, metric of the best checkpoint so far, and `previous`, the best step before it; None without one."""
    return _read(folder / BEST)


def _mark(folder: Path, name: str, step: int, **facts: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    before = _read(folder / name)
    committed = {step_of(path) for path in list_committed(folder)}
    previous = None
    if before:
        previous = before["step"] if before["step"] in committed and before["step"] != step else before["previous"]
    write_durable(folder / name, json.dumps({"step": step, **facts, "previous": previous}).encode())


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None
