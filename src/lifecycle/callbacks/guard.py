"""The forgetting guard: judges every validation of the parent's domains, and acts on stage and data module.

It measures before the first step and at every validation. An action takes effect before the step's checkpoint is
written and is saved in it, so a run that is killed and resumed decides the same. Where it may `restore`, every
measurement that was below `stop` is saved, and the last of them stays. `forgetting.json` holds the whole history.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from lifecycle.callbacks.forgetting import History, Measurement, assess
from lifecycle.checkpoint import list_committed, step_of
from lifecycle.checkpoint.sharded import wait_for_saves
from lifecycle.config.schema import Guard
from lifecycle.stages.base import Stage
from lifecycle.system import atomic

NAME = "forgetting.json"


class ForgettingGuard(Callback):
    """Watches the domains `retained`; writes below `folder`."""

    def __init__(self, spec: Guard, *, folder: Path, retained: Sequence[str]) -> None:
        self.spec, self.retained, self.history = spec, list(retained), History()
        self._folder = folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new run is measured before its first step (the stage does it right after this); one that was killed after
        the guard had ended it ends again."""
        stage = cast(Stage, pl_module)
        if not self.history.measurements and trainer.global_step == 0:
            stage.validation_due = True
        trainer.should_stop |= stage.guard.restore_step is not None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Judge what was measured before the step: at the start, or after a preemption in the middle of it."""
        self._look(trainer, cast(Stage, pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Judge what was measured after the step; comes before the callbacks that save."""
        self._look(trainer, cast(Stage, pl_module))

    def _look(self, trainer: Trainer, stage: Stage) -> None:
        for step, metrics in stage.guard.take_measurements():
            perplexity = {
                key.split("/", 1)[1].removesuffix("/perplexity"): value
                for key, value in metrics.items()
                if key.endswith("/perplexity")
            }
            share, rate = stage.feed.replay_share(), stage.guard.lr_scale
            found = assess(step, perplexity, self.retained, self.history, self.spec, share=share, rate=rate)
            found = self._act(found, trainer, stage)
            self.history.measurements.append(found)
            if step and found.level != "stop" and "restore" in self.spec.actions:
                stage.guard.safe_at = step
            if step:  # the row of the start has no tokens of its own
                stage.meter.log(step, {f"guard/{name}/forgetting": lost for name, lost in found.forgetting.items()})
            stage.meter.say(line(found))
            if trainer.is_global_zero:
                self._write()

    def _act(self, found: Measurement, trainer: Trainer, stage: Stage) -> Measurement:
        """Carry out the decision; returns the measurement with the step from which it takes effect."""
        if found.action == "replay" and found.to is not None:
            return replace(found, binds=stage.feed.set_replay_share(found.to))
        if found.action == "rate" and found.to is not None:
            stage.guard.lr_scale = found.to
        if found.action == "restore":
            stage.guard.restore_step = self._safe_step(found, trainer)
            trainer.should_stop = True
            found = replace(found, to=stage.guard.restore_step)
        return found if found.action is None else replace(found, binds=trainer.global_step)

    def _safe_step(self, found: Measurement, trainer: Trainer) -> int:
        """The last step below `stop` that has a checkpoint, 0 without one; as rank 0, which writes them, sees it."""
        wait_for_saves(trainer.strategy)
        committed = [step_of(path) or 0 for path in list_committed(self._folder / "checkpoints")]
        known = History([*self.history.measurements, found])
        return int(trainer.strategy.broadcast(max(known.safe_steps(committed), default=0)))

    def _write(self) -> None:
        content = {"retained": self.retained, "measurements": [m.plain() for m in self.history.measurements]}
        atomic.write(self._folder / NAME, json.dumps(content, indent=1))

    def state_dict(self) -> dict[str, Any]:
        """Plain containers, for the checkpoint."""
        return {"measurements": [measurement.plain() for measurement in self.history.measurements]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.history = History([Measurement(**entry) for entry in state_dict["measurements"]])


def line(found: Measurement) -> str:
    """One measurement for the terminal."""
    domains = ", ".join(f"{name} {value:+z.1%}" for name, value in found.forgetting.items())
    done = {
        "replay": f"; replay goes from {found.share:.0%} to {found.to or 0:.0%} of the tokens at step {found.binds}",
        "rate": f"; the rate is multiplied with {found.to or 0:g} from now on",
        "restore": "; the run ends with the last checkpoint that was below",
    }
    tail = done[found.action] if found.action else f"; {found.advice}" if found.advice else ""
    return f"forgetting at step {found.step}: {domains} ({found.level}){tail}"
