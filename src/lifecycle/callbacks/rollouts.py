"""Looks at the samples of a policy before its first update, and refuses a run that would learn nothing.

preflight.json         what was found, with three samples; the report shows it
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from lifecycle.errors import UserError
from lifecycle.stages.base import Stage
from lifecycle.stages.reinforcement.acting.actor import Actor
from lifecycle.stages.reinforcement.watching.preflight import look
from lifecycle.stages.reinforcement.watching.shown import lines, rows
from lifecycle.stages.reinforcement.watching.verdict import Drawing, refusal, verdict
from lifecycle.system import atomic

PREFLIGHT = "preflight.json"


def watching_rollouts(stage: Stage, folder: Path) -> list[Callback]:
    """What watches a stage that samples; nobody any other."""
    actor = getattr(stage, "actor", None)
    return [BeforeFirstUpdate(actor, folder=folder)] if isinstance(actor, Actor) else []


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
        setup, sampling = stage.setup_facts, self._actor.drawn.sampling
        tokenizer = setup.tokenizer
        assert tokenizer is not None
        ids = dict.fromkeys([*tokenizer.end_ids, *setup.end_ids])
        return Drawing(
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            samples_per_prompt=setup.timeline.at(0).samples,
            ends=[*(tokenizer.decode([i], specials=True) for i in ids), *map(repr, sampling.stop)],
        )
