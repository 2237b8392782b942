"""Writes metrics.csv as training goes on (`metrics_file.py` says what stands in it)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lifecycle.loggers.metrics_file import FIRST_COLUMNS, lines, read_rows, written
from lifecycle.system import owner

UNWANTED = ("epoch",)
"""Lightning adds it to every row; an epoch is not a unit of this project's runs."""
_FOREVER = 2**62


class CsvLogger(Logger):
    """Writes metrics.csv. Rows wait for `save()`, a checkpoint, the end, `flush_rows` of them or `flush_seconds`.

    An existing file is continued: call `cut(step)` before the first step of a resumed run. Only rank 0 writes.
    """

    def __init__(self, *, folder: Path | str, flush_rows: int = 100, flush_seconds: float = 5.0) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._flush_rows, self._flush_seconds = flush_rows, flush_seconds
        self._flushed_at = time.monotonic()
        self._columns: list[str] = []
        self._pending: dict[int, dict[str, str]] = {}
        self._last_written = -1
        self._opened = False

    @property
    def name(self) -> str:
        """Of the logger, for Lightning."""
        return "csv"

    @property
    def version(self) -> str:
        """A run has one metrics file."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's folder holds config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Merge `metrics` (plain numbers; a tensor on a device would synchronise it) into the row of `step`."""
        if step is None:
            raise ValueError("metrics.csv has one row a step: log_metrics needs step=, it came as None")
        row = self._pending.setdefault(int(step), {})
        for key, value in metrics.items():
            if key not in UNWANTED:
                row["tokens" if key == "train/tokens" else key] = written(value)
        late = time.monotonic() - self._flushed_at >= self._flush_seconds
        if late or len(self._pending) >= self._flush_rows:
            self._flush(keep_newest=True)

    @rank_zero_only
    def save(self) -> None:
        """Write all rows that wait, also the newest; if that gets more metrics later, the file is written anew."""
        self._flush(keep_newest=False)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """A checkpoint's rows must be on disk with it: what comes later is computed again after a crash."""
        self.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rest; in the folder of a run that was taken over nothing, which another call has raised."""
        if not owner.lost(self.path):
            self._flush(keep_newest=False)

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Drop every row after `step`: a resumed run computes those again."""
        self._pending = {s: row for s, row in self._pending.items() if s <= step}
        self._columns, rows = read_rows(self.path)
        self._opened = True
        kept = [row for row in rows if int(row[0]) <= step]
        self._last_written = int(kept[-1][0]) if kept else -1
        if self.path.exists():
            self._rewrite(kept)

    def _flush(self, *, keep_newest: bool) -> None:
        owner.check(self.path)
        self._flushed_at = time.monotonic()
        if not self._opened:
            self.cut(_FOREVER)
        held = max(self._pending, default=0)
        ready = {s: row for s, row in sorted(self._pending.items()) if not (keep_newest and s == held)}
        if not ready:
            return
        names = [*self._columns, *FIRST_COLUMNS, *(name for row in ready.values() for name in row)]
        columns = list(dict.fromkeys(names))
        if columns == self._columns and min(ready) > self._last_written:
            self._append(ready)
        else:
            self._merge(columns, ready)
        self._last_written = max(self._last_written, max(ready))
        self._pending = {s: row for s, row in self._pending.items() if s not in ready}

    def _append(self, ready: Mapping[int, Mapping[str, str]]) -> None:
        text = lines([str(step), *(row.get(name, "") for name in self._columns[1:])] for step, row in ready.items())
        with self.path.open("a", newline="") as file:
            file.write(text)

    def _merge(self, columns: list[str], ready: Mapping[int, Mapping[str, str]]) -> None:
        """A new column, or more metrics of a row already written: the whole file anew."""
        _, rows = read_rows(self.path)
        merged: dict[int, dict[str, str]] = {int(r[0]): dict(zip(self._columns, r, strict=True)) for r in rows}
        for step, row in ready.items():
            merged.setdefault(step, {"step": str(step)}).update(row)
        self._columns = columns
        self._rewrite([[merged[step].get(name, "") for name in columns] for step in sorted(merged)])

    def _rewrite(self, rows: Iterable[list[str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(self.path.name + ".new")
        with aside.open("w", newline="") as file:
            file.write(lines([self._columns or list(FIRST_COLUMNS), *rows]))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.path)
