"""Where the time of a step goes: torch's profiler over a few steps after warm-up.

    python -m lifecycle callbacks=profile experiment=debug

writes `profile/trace.json.gz` (open it in https://ui.perfetto.dev) and `profile/top_ops.txt` into the run's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from lifecycle.system import owner


class Profile(Callback):
    """Profile `steps` steps on rank 0 after `after_steps`, which hold compilation and warm-up."""

    def __init__(self, *, folder: Path, steps: int, after_steps: int) -> None:
        super().__init__()
        self._folder = folder / "profile"
        self._steps = steps
        self._after = after_steps
        self._seen = 0
        self._profiler: profile | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start when the warm-up is over."""
        if trainer.is_global_zero and self._seen == self._after:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profiler = profile(activities=[ProfilerActivity.CPU, *cuda], acc_events=True)
            self._profiler.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after the last profiled step."""
        self._seen += 1
        if self._seen == self._after + self._steps:
            self._write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run shorter than the profile still leaves what was seen."""
        self._write()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """So does one that is interrupted."""
        self._write()

    def _write(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        if owner.lost(self._folder):
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        (self._folder / "top_ops.txt").write_text(profiler.key_averages().table(sort_by=by, row_limit=40))
        profiler.export_chrome_trace(str(self._folder / "trace.json.gz"))
        print(f"profile of {min(self._steps, self._seen - self._after)} steps: {self._folder}", flush=True)
