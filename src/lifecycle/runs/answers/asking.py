"""Asks the model of a run for its answers: before the first step, and at every measurement (`given.py`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from lifecycle.data.module import DataModule
from lifecycle.data.validation import HeldOutQuestion
from lifecycle.rollout.environments.named import EnvironmentKeys
from lifecycle.runs.answers.given import NAME, answers, read_answers, right_by_rewards, shares
from lifecycle.stages.base import Stage
from lifecycle.system import atomic
from lifecycle.tokenizer.tokenizer import Tokenizer


def answering(cfg: DictConfig, folder: Path, data: DataModule) -> list[HeldOutAnswers]:
    """What asks the model of a run that is measured; nobody where it is not, or has no held-out prompt."""
    asked = data.questions(cfg.validation.answers or 0) if cfg.validation.every_steps else []
    if not asked:
        return []
    given, most = OmegaConf.to_container(cfg.stage).get("environment"), cfg.validation.answer_tokens  # type: ignore[union-attr]
    environment = None if given is None else EnvironmentKeys(**given)
    return [HeldOutAnswers(asked, data.tokenizer, folder=folder, most_tokens=most, environment=environment)]


class HeldOutAnswers(Callback):
    """Asks the model after every validation; comes before the callbacks that save, so a run that is killed has the
    answers of every step that it goes on from."""

    def __init__(
        self,
        asked: Sequence[tuple[str, HeldOutQuestion]],
        tokenizer: Tokenizer,
        *,
        folder: Path,
        most_tokens: int,
        environment: EnvironmentKeys | None = None,
    ) -> None:
        self._asked, self._tokenizer, self._most_tokens = asked, tokenizer, most_tokens
        self._environment = environment
        self._path = folder / NAME
        self._answered_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lines of steps that will be taken again go; a new run is measured before its first step."""
        if trainer.is_global_zero and self._path.exists():
            self._write([one for one in read_answers(self._path) if one["step"] <= trainer.global_step])
        if trainer.global_step == 0:
            cast(Stage, pl_module).validation_due = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Ask after what was measured before the step: at the start, or after a preemption in the middle of it."""
        self._ask(trainer, cast(Stage, pl_module))
        cast(Stage, pl_module).meter.go_on()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Ask after what was measured after the step."""
        self._ask(trainer, cast(Stage, pl_module))

    def _ask(self, trainer: Trainer, stage: Stage) -> None:
        step = stage.measured_at
        if step is None or step == self._answered_at:
            return
        self._answered_at = step
        stage.meter.pause()
        stage.network.eval()
        with trainer.precision_plugin.forward_context():
            made = answers(
                stage.network,
                self._asked,
                self._tokenizer,
                most_tokens=self._most_tokens,
                step=step,
                environment=self._environment,
                right=right_by_rewards(stage),
            )
        stage.network.train()
        told = shares(made)
        if "prompt" in stage.views:  # its samples are told under these names, in the same rows
            told = {f"answers/{name.partition('/')[2]}": value for name, value in told.items()}
            told["answers/right"] = told.pop("answers/exact_match")
        stage.meter.log(step, told)
        if trainer.is_global_zero:
            known = read_answers(self._path) if self._path.exists() else []
            self._write([*(one for one in known if one["step"] != step), *made])

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        atomic.write(self._path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
