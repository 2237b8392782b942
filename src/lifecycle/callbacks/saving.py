"""Saves a checkpoint beside the periodic ones: at a new best, at a step that a guard may go back to, at a preemption
and at the end; and counts the seconds that saving took."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lifecycle.bounds import due
from lifecycle.checkpoint import mark_best, mark_safe
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.checkpoint.sharded import ShardedStrategy
from lifecycle.stages.base import Stage
from lifecycle.system import owner, signals


def step_name(step: int) -> str:
    """The folder of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def periodic(folder: Path, every_steps: int | None) -> ModelCheckpoint:
    """Lightning's own callback decides when (0 and None: never); `checkpoint.retention`, at each commit, which stay."""
    saver = ModelCheckpoint(
        dirpath=folder,
        filename="step-{step:08d}",
        auto_insert_metric_name=False,
        every_n_train_steps=every_steps or 0,
        save_top_k=-1,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    saver.FILE_EXTENSION = ""  # a checkpoint is a folder
    return saver


class SaveOnEvents(Callback):
    """Saves after the step that gave the best validation loss, that a guard may go back to, that met a SIGTERM or a
    Ctrl-C, or that was the last.

    Both signals set the stage's `stop_asked`; the step in flight is finished and saved on all ranks. A second Ctrl-C
    waits for nothing. In another thread than the main one no signal is heard.
    """

    def __init__(self, *, folder: Path, every_steps: int | None) -> None:
        self._folder, self._every = folder, every_steps
        self._blocked_s = 0.0
        self._marked: int | None = None
        self._at_once: Any = None  # what Ctrl-C did before; None too where that was not set from Python

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal means: finish the step, save, stop. Lightning's handler would broadcast every step."""
        stage = cast(Stage, pl_module)

        def finish_step(signum: int, frame: FrameType | None) -> None:
            stage.stop_asked = True
            if signum == signal.SIGINT:
                self._end_at_once()
                if trainer.is_global_zero:
                    sys.stderr.write(
                        "\nstopping: the step in flight is finished and saved; Ctrl-C again ends at once\n"
                    )

        signals.handle(signal.SIGTERM, finish_step)
        self._at_once = signal.getsignal(signal.SIGINT)
        if self._at_once != signal.SIG_IGN:  # as in a shell script's background, which the terminal's Ctrl-C is not for
            signals.handle(signal.SIGINT, finish_step)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the handlers: a signal after training ends the process at once."""
        self._end_at_once()

    def _end_at_once(self) -> None:
        signals.handle(signal.SIGINT, signal.SIG_DFL if self._at_once is None else self._at_once)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """A validation that a preemption had cut short was done before the first step: its checkpoint is there.

        Raises FolderLost where the heartbeat has seen that another process has the run's folder.
        """
        owner.check(self._folder, look=False)
        self._mark(trainer, cast(Stage, pl_module))

    def _mark(self, trainer: Trainer, stage: Stage) -> bool:
        """Whether the step just taken is the best so far, or a safe one; the first look points best.json, safe.json."""
        step = trainer.global_step
        best, safe = stage.best.improved_at == step, stage.guard.safe_at == step
        if (best or safe) and step != self._marked:
            if best and trainer.is_global_zero:
                mark_best(self._folder, step, stage.best.loss)
            if safe and trainer.is_global_zero:
                mark_safe(self._folder, step)
            self._marked = step
        return best or safe

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save if something happened at this step; the periodic callback comes after and finds it saved."""
        stage, step = cast(Stage, pl_module), trainer.global_step
        marked, ended = self._mark(trainer, stage), stage.feed.is_last(step) or stage.guard.restore_step is not None
        if (marked or ended or stage.preempted) and not due(step, self._every):
            trainer.save_checkpoint(self._folder / step_name(step))
        writer = trainer.strategy.checkpoint_io
        if isinstance(writer, CommittedCheckpointIO):
            writer.raise_pending()
            # a sharded save ends on every rank at a moment of its own: the ranks stop together, and then it is raised
            stage.stop_asked |= isinstance(trainer.strategy, ShardedStrategy) and trainer.strategy.save_failed
            stage.meter.checkpointed(writer.blocked_s - self._blocked_s)
            self._blocked_s = writer.blocked_s
