"""Retention: the last k checkpoints, the best, the one that a guard may go back to, and the milestones are kept; called
at a run's start, before every save and after every commit.

Lightning decides when to save; what it asks to be removed is ignored (`CommittedCheckpointIO.remove_checkpoint`).
"""

from __future__ import annotations

import json
import shutil
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
    paths = _paths(folder)
    stay = keep(list(paths), keep_last=keep_last, marked=_marked(folder, paths), milestones=milestones)
    if written is not None:
        stay.add(written)
    gone = sorted(paths.keys() - stay)
    for step in gone:
        remove(paths[step])
    return gone


def make_room(folder: Path, needed_bytes: int, *, keep_last: int, milestones: Sequence[int]) -> None:
    """Before a save: delete checkpoints beyond the retention, which may keep fewer than when they were saved.

    Where `needed_bytes` are still not free, also delete the oldest of those that the retention would drop after this
    save, if that frees enough. The newest always stays.
    """
    if not folder.is_dir():
        return
    prune(folder, keep_last=keep_last, milestones=milestones)
    lacking = needed_bytes - shutil.disk_usage(folder).free
    if lacking <= 0:
        return
    paths = _paths(folder)
    stay = keep(list(paths), keep_last=max(1, keep_last - 1), marked=_marked(folder, paths), milestones=milestones)
    going = {step: size_of(paths[step]) for step in sorted(paths.keys() - stay)}
    if sum(going.values()) < lacking:
        return
    for step, size in going.items():
        if lacking > 0:
            remove(paths[step])
            lacking -= size


def remedies(folder: Path, *, keep_last: int, milestones: Sequence[int]) -> str:
    """What of this run could be deleted where the disk is full, with its size and what to type; nothing else."""
    paths = _paths(folder)
    marked = _marked(folder, paths)
    least = keep(list(paths), keep_last=1, marked=marked, milestones=[])
    kept = keep(list(paths), keep_last=keep_last, marked=marked, milestones=[])
    old = [paths[step] for step in kept - least if step not in milestones]
    fixed = [paths[step] for step in paths if step in milestones and step not in least]
    damaged = list(folder.glob("damaged-*"))
    lines = [
        f"{words.format(len(places))} ({sum(map(size_of, places)):,} bytes)"
        for words, places in (
            (f"checkpoint.keep_last=1 lets {{}} older checkpoint{'s' * (len(old) != 1)} go at the next start", old),
            ("checkpoint.milestones=[] beside it lets {} more go", fixed),
            (f"{{}} damaged ones ({folder}/damaged-*) may be deleted by hand", damaged),
        )
        if places
    ]
    return f"Of this run: {'; '.join(lines)}" if lines else "Of this run nothing can go"


def size_of(path: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


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


def _paths(folder: Path) -> dict[int, Path]:
    return {step_of(path) or 0: path for path in list_committed(folder)}


def _marked(folder: Path, paths: Collection[int]) -> list[int | None]:
    """The steps that best.json and safe.json keep: the one before, until the marked one is committed."""
    marks = [mark for mark in (_read(folder / BEST), _read(folder / SAFE)) if mark]
    return [mark["step"] if mark["step"] in paths else mark["previous"] for mark in marks]


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None
