"""Looks at the samples of a policy before its first update, and refuses a run that would learn nothing; then watches
what is told of every step.

preflight.json      what was found, with three samples; the report shows it
noticed.json        what was said while it was trained, each once, with its step; the report shows it
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from lifecycle.errors import UserError
from lifecycle.stages.base import Stage
from lifecycle.stages.reinforcement.acting.actor import Actor
from lifecycle.stages.reinforcement.watching.preflight import look
from lifecycle.stages.reinforcement.watching.shown import lines, rows
from lifecycle.stages.reinforcement.watching.signs import Facts, Signs
from lifecycle.stages.reinforcement.watching.verdict import Drawing, refusal, verdict
from lifecycle.system import atomic

PREFLIGHT, NOTICED = "preflight.json", "noticed.json"


def watching_rollouts(stage: Stage, folder: Path) -> list[Callback]:
    """What watches a stage that samples; nobody any other."""
    actor = getattr(stage, "actor", None)
    if not isinstance(actor, Actor):
        return []
    return [BeforeFirstUpdate(actor, folder=folder), WhileTraining(actor, folder=folder)]


class BeforeFirstUpdate(Callback):
    """The pre-flight of a new run; a run that goes on had its own."""

    def __init__(self, actor: Actor, *, folder: Path) -> None:
        self._actor, self._path, self._goes_on = actor, folder / PREFLIGHT, False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The run goes on."""
        self._goes_on = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look. Raises UserError where there is nothing to learn from."""
        keys, stage = self._actor.graded.preflight, cast(Stage, pl_module)
        if self._goes_on or trainer.global_step or not keys.prompts:
            return
        found = look(stage, self._actor)
        if found is None:
            return
        judged = verdict(found, keys, self._drawing(stage))
        if trainer.is_global_zero:
            told = {**asdict(found), "table": rows(found), "refused": judged.refused, "warned": judged.warned}
            atomic.write(self._path, json.dumps(told, indent=1, ensure_ascii=False))
            for line in [*lines(found), *(f"  warning: {one}" for one in judged.warned)]:
                print(line, file=sys.stderr, flush=True)
        if judged.refused:
            raise UserError(refusal(judged.refused))

    def _drawing(self, stage: Stage) -> Drawing:
        setup, drawn = stage.setup_facts, self._actor.drawn
        sampling, environment, tokenizer = drawn.sampling, drawn.environment, setup.tokenizer
        assert tokenizer is not None
        ids = dict.fromkeys([*tokenizer.end_ids, *setup.end_ids])
        return Drawing(
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            samples_per_prompt=setup.timeline.at(0).samples,
            ends=[*(tokenizer.decode([i], specials=True) for i in ids), *map(repr, sampling.stop)],
            max_turns=None if environment.name is None else environment.max_turns,
        )


class WhileTraining(Callback):
    """Says what goes wrong in the steps of a run, each once. It is told the rows of steps as they are logged, and is in
    every checkpoint."""

    def __init__(self, actor: Actor, *, folder: Path) -> None:
        self._actor, self._path = actor, folder / NOTICED
        self._stage: Stage | None = None
        self._signs: Signs | None = None
        self._restored: Mapping[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen. What was noticed in steps that will be taken again goes."""
        self._stage = stage = cast(Stage, pl_module)
        self._signs = Signs(Facts(bf16=stage.setup_facts.bf16, rewards=tuple(self._actor.scoring.names)))
        if self._restored is not None:
            self._signs.restore(self._restored)
        if trainer.is_global_zero and (self._signs.said or self._path.exists()):
            self._write()
        stage.meter.listeners.append(self._see)

    def _see(self, step: int, row: Mapping[str, float]) -> None:
        assert self._signs is not None and self._stage is not None
        new = self._signs.see(step, row)
        for one in new:
            self._stage.meter.say(f"noticed at step {one.step}: {one.words}")
        if new and self._stage.trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        assert self._signs is not None
        atomic.write(self._path, json.dumps([asdict(one) for one in self._signs.said], indent=1, ensure_ascii=False))

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint, with all steps before it."""
        if self._signs is None or self._stage is None:
            return dict(self._restored or {})
        self._stage.meter.flush()
        return self._signs.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._restored = state_dict or None
