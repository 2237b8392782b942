"""Which checkpoints stay: the last k, the best, and the milestones. Runs after every commit.

Lightning decides when to save; what it asks to be removed is ignored (`CommittedCheckpointIO.remove_checkpoint`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifecycle.checkpoint.protocol import list_committed, remove, step_of, write_durable
from lifecycle.errors import UserError

BEST = "best.json"


def keep(steps: Sequence[int], *, keep_last: int, best: int | None, milestones: Sequence[int]) -> set[int]:
    """Those of `steps` that stay."""
    if keep_last < 1:
        raise UserError(f"checkpoint.keep_last is {keep_last}; wanted at least 1, or a run could not be resumed")
    return set(sorted(steps)[-keep_last:]) | (set(steps) & {*milestones, *([] if best is None else [best])})


def prune(folder: Path, *, keep_last: int, milestones: Sequence[int], written: int | None = None) -> list[int]:
    """Delete the committed checkpoints in `folder` that need not stay, and name their steps.

    `written`: the step just committed; it stays even if a folder of a later step is there. While the best step's own
    checkpoint is not committed yet, the best before it stays.
    """
    paths = {step_of(path) or 0: path for path in list_committed(folder)}
    best = read_best(folder)
    wanted = best["step"] if best else None
    if best and wanted not in paths:
        wanted = best["previous"]
    stay = keep(list(paths), keep_last=keep_last, best=wanted, milestones=milestones)
    if written is not None:
        stay.add(written)
    gone = sorted(paths.keys() - stay)
    for step in gone:
        remove(paths[step])
    return gone


def mark_best(folder: Path, step: int, value: float, metric: str = "valid/loss") -> None:
    """Point best.json to `step`, whose checkpoint is saved next; `value` is what it reached."""
    folder.mkdir(parents=True, exist_ok=True)
    before = read_best(folder)
    committed = {step_of(path) for path in list_committed(folder)}
    previous = None
    if before:
        previous = before["step"] if before["step"] in committed and before["step"] != step else before["previous"]
    content = {"step": step, "value": value, "metric": metric, "previous": previous}
    write_durable(folder / BEST, json.dumps(content).encode())


def read_best(folder: Path) -> dict[str, Any] | None:
    """step, value, metric of the best checkpoint so far, and `previous`, the best step before it; None without one."""
    file = folder / BEST
    return json.loads(file.read_text()) if file.is_file() else None
