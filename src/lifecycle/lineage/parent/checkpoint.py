"""A parent that is a checkpoint of a run, finished or not: RUN@best, RUN@STEP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from lifecycle import config
from lifecycle.checkpoint import list_committed, read_best, step_of
from lifecycle.checkpoint.weights import load_stage, load_weights
from lifecycle.errors import UserError
from lifecycle.lineage.parent.adapter import Base, Find, base_of
from lifecycle.lineage.parent.parent import Parent, trained_with
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.loggers import read_metrics
from lifecycle.model import ModelConfig
from lifecycle.model.adapters import factors_of
from lifecycle.model.layers.initial import SCORE
from lifecycle.system.say_once import say_read


def from_checkpoint(run: RunFolder, which: str, asked: str, find: Find) -> Parent:
    """The weights inside a checkpoint, or its adapter in those of the run's own parent, which `find` finds by its name;
    sizes and tokenizer are in the run's folder. asked: the key with its value, for messages."""
    steps = {step_of(path): path for path in list_committed(run.checkpoints)}
    best = read_best(run.checkpoints)
    wanted = best["step"] if best and which == "best" else int(which) if which.isdecimal() else None
    written = run.config()
    if wanted not in steps or written is None:
        raise UserError(f"{asked}: there is no such checkpoint; run {run.path} has {after_the_at(run.path)}")
    if best and which == "best" and (said := _not_improved(run, best)):
        say_read(asked, said)
    if not written.get("model"):
        raise UserError(f"{run.path / 'config.yaml'} says nothing of the run's model; get the file again")
    tokenizer = trained_with(run, run.path / "tokenizer", asked)
    sizes = DictConfig({"model": config.literal(written["model"])})
    model: ModelConfig = config.build(sizes.model)
    path, base = steps[wanted], base_of(run, find)
    theta = load_stage(path).get("rope_theta", model.rope_theta)  # a phase may have changed it on the way
    return Parent(
        folder=path,
        run=run,
        model=replace(model.with_vocab(tokenizer.vocab_size), rope_theta=theta),
        tokenizer=str((run.path / "tokenizer").resolve()),
        name=str(run.path.resolve()),
        read=lambda: _stripped(load_weights(path)) if base is None else _merged(path, base),
    )


def _not_improved(run: RunFolder, best: Mapping[str, Any]) -> str | None:
    """What is said where no checkpoint of the run is better than the model that it began with."""
    found = read_metrics(run.path / "metrics.csv")
    measured = zip(found.get("step", []), found.get(best["metric"], []), strict=False)
    begun = next((loss for step, loss in measured if step == 0 and loss is not None), None)
    if begun is None or begun > best["value"]:
        return None
    return (
        f"no step of this run was better than the model that it began with ({best['metric']} {begun:.4g} before its "
        f"first step, {best['value']:.4g} at the best one): this is step {best['step']}, the best that it has"
    )


def _merged(path: Path, base: Base) -> dict[str, Tensor]:
    state = _stripped(load_weights(path))
    return base.merged(factors_of(state, base.model, base.adapter), state.get(SCORE))


def _stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fp32 weights by the names of the network: those in a checkpoint begin with `model.`, its name in the stage; a
    critic's are left out."""
    return {name.removeprefix("model."): w.float() for name, w in state.items() if name.startswith("model.")}


def after_the_at(place: Path) -> str:
    """The checkpoints of a run as init_from names them (RUN@STEP, RUN@best), or `none`; for messages."""
    run = RunFolder(place)
    steps = [f"{place.name}@{step_of(path)}" for path in list_committed(run.checkpoints)]
    best = read_best(run.checkpoints)
    if best and any(step_of(path) == best["step"] for path in list_committed(run.checkpoints)):
        steps.append(f"{place.name}@best")
    return ", ".join(steps) or "none"
