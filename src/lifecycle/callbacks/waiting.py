"""Short waits on a busy machine, judged every few seconds of training on a CPU (system/native/thread_waits.py)."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lifecycle.system.native.thread_waits import BUSY, FREE, Crowding, ParkedTeam, can_switch

EVERY_S = 3.0


class ShortWaits(Callback):
    """Threads wait for each other asleep while other processes take the processors, and spinning otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self._team, self._judged = ParkedTeam(), 0.0
        self._crowding: Crowding | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here, on a CPU."""
        if trainer.strategy.root_device.type == "cpu" and can_switch():
            self._crowding, self._judged = Crowding(), time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge again, if it is time."""
        if self._crowding is None or time.monotonic() < self._judged + EVERY_S:
            return
        self._judged, crowded = time.monotonic(), self._crowding.look()
        if crowded is None:
            return
        if crowded >= BUSY:
            self._team.begin()
        elif crowded <= FREE:
            self._team.end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the process as it was."""
        self._team.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same."""
        self._team.end()
