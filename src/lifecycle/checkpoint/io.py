"""Committed checkpoints as Lightning's `CheckpointIO`: copy, let training go on, write in the background.

    save_checkpoint:  wait for the save before  ->  copy into the pool  ->  return        (`blocked_s`)
    one thread:       write + hash  ->  fsync  ->  manifest  ->  rename  ->  prune

Trainer(plugins=[CommittedCheckpointIO(...)]); the path given to `trainer.save_checkpoint` becomes a folder.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from lifecycle.checkpoint.load import load
from lifecycle.checkpoint.manifest import MANIFEST
from lifecycle.checkpoint.protocol import clear_staging, staged, step_of
from lifecycle.checkpoint.retention import make_room, prune, remedies
from lifecycle.checkpoint.snapshot import TREE, Frozen, Pool, plain


class CommittedCheckpointIO(CheckpointIO):
    """Saves by the commit protocol, loads only what verifies, keeps the last k, the best and the milestones.

    `async_save`: write in the background. An error there (disk full) raises `CheckpointError` at the next
    `raise_pending`, `save_checkpoint` or `teardown`. Saving a step that is committed or being written does nothing: the
    same step has the same state.
    """

    def __init__(self, *, keep_last: int = 3, milestones: Sequence[int] = (), async_save: bool = True) -> None:
        self.keep_last, self.milestones, self.async_save = keep_last, tuple(milestones), async_save
        self._pool = Pool()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._pending_path: Path | None = None
        self._cleared: set[Path] = set()
        self._blocked_s = 0.0

    @property
    def blocked_s(self) -> float:
        """Seconds that training has waited for saves so far."""
        return self._blocked_s

    def count_blocked(self, seconds: float) -> None:
        """Add the seconds that training waited for a save by another writer (a sharded one)."""
        self._blocked_s += seconds

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Save Lightning's `checkpoint` as the folder `path`; its tensors may change as soon as this returns.

        Raises TypeError for things that are not plain, `CheckpointError` for a save before that failed.
        """
        started = time.perf_counter()
        self._save(checkpoint, Path(path))
        self._blocked_s += time.perf_counter() - started

    def _save(self, checkpoint: dict[str, Any], path: Path) -> None:
        self.raise_pending()
        if self._pending is not None and self._pending_path == path:
            return
        self.wait()
        if (path / MANIFEST).is_file():
            return
        plain(checkpoint)
        if path.parent not in self._cleared:
            clear_staging(path.parent)
            self._cleared.add(path.parent)
        frozen = self._pool.take(checkpoint)
        step, tokens = int(checkpoint["global_step"]), tokens_of(checkpoint)
        if self.async_save:
            self._pending, self._pending_path = self._thread.submit(self._write, frozen, path, step, tokens), path
        else:
            self._write(frozen, path, step, tokens)

    def _write(self, frozen: Frozen, path: Path, step: int, tokens: int | None) -> None:
        tree = io.BytesIO()
        torch.save(frozen.tree, tree)
        needed = frozen.bytes + tree.getbuffer().nbytes
        self.make_room(path, needed)
        with staged(
            path, step=step, tokens=tokens, needed_bytes=needed, remedies=lambda: self.remedies(path)
        ) as staging:
            for block in frozen.blocks:
                with staging.create(block.name) as file:
                    file.write(block.header)
                    file.write(frozen.memory[block.start : block.end])
            with staging.create(TREE) as file:
                file.write(tree.getbuffer())
        self.prune_after(path)

    def make_room(self, path: Path, needed_bytes: int) -> None:
        """Before the checkpoint `path` is written: where the disk has too little room, delete others that the retention
        does not keep."""
        if step_of(path) is not None:
            make_room(path.parent, needed_bytes, keep_last=self.keep_last, milestones=self.milestones)

    def remedies(self, path: Path) -> str:
        """What could be deleted, in words, where there is no room for the checkpoint `path`."""
        return remedies(path.parent, keep_last=self.keep_last, milestones=self.milestones)

    def prune_after(self, path: Path) -> None:
        """After the checkpoint `path` was committed: delete those that need not stay. Other folders are not touched."""
        if step_of(path) is not None:
            prune(path.parent, keep_last=self.keep_last, milestones=self.milestones, written=step_of(path))

    def raise_pending(self) -> None:
        """Raise the error of the save in the background, if it has ended with one; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written; raises the error of the save that was."""
        pending, self._pending, self._pending_path = self._pending, None, None
        if pending is not None:
            pending.result()

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Lightning's dict back, bit for bit, on the CPU or on the device `map_location`.

        Each file is hashed as it is read, and used only where the hash is right. `weights_only` makes no difference: a
        checkpoint holds only tensors and plain values. Raises `CheckpointError` for damage.
        """
        self.wait()
        return load(Path(path), device=map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Does nothing: which checkpoints stay is decided after each commit, by `retention`."""

    def teardown(self) -> None:
        """Finish the save that is being written, raise its error, and free the memory."""
        try:
            self.wait()
        finally:
            self._pool.release()


def tokens_of(checkpoint: dict[str, Any]) -> int | None:
    """Trained tokens so far, from the state of the stage; None where it holds no count."""
    tokens = checkpoint.get("stage", {}).get("meter", {}).get("tokens")
    return None if tokens is None else int(tokens)
