"""What a stage takes over from its parent besides weights and tokenizer: its rate, its data to replay, its moments.

    stage.optimizer.lr: null                 the parent's peak rate times stage.peak_ratio
    stage.replay: {share: 0.1, ancestors: 1} a share of every step is drawn from the parent's own mixture
    stage.optimizer_state: parent            the optimizer goes on with the parent's moments

All of it is written into the config before anything is built, so config.yaml says what was really done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lifecycle import config
from lifecycle.checkpoint import list_committed, step_of
from lifecycle.checkpoint.weights import load_optimizer
from lifecycle.data.files import is_remote
from lifecycle.data.levels import is_level
from lifecycle.data.plan import REPLAY
from lifecycle.data.weights import Weight
from lifecycle.errors import UserError
from lifecycle.optim.carry import forget_rows
from lifecycle.parent import Parent, finished_runs
from lifecycle.runfolder import RunFolder


def inherit(cfg: DictConfig, parent: Parent | None) -> None:
    """Resolve in `cfg` what it leaves to the parent. Raises UserError where there is none, or it cannot give it.

    In a dry run without a parent the rate stays open and nothing is replayed.
    """
    if parent is None:
        if config.starts_from_parent(cfg.stage) and not cfg.dry_run:
            raise UserError(
                f"this stage goes on from a trained model, and init_from is null: type init_from=RUN, or a Hugging "
                f"Face folder or hub id; {finished_runs()}"
            )
        return
    if "optimizer" in cfg.stage and cfg.stage.optimizer.lr is None:
        cfg.stage.optimizer.lr = _rate(cfg, parent)
    replay = cfg.stage.get("replay")
    if replay is not None and REPLAY not in cfg.data.sources:
        # also at a share of 0: what the parent knew is measured
        sources = _replayed(parent, _generations(replay.ancestors), share=replay.share)
        with open_dict(cfg):
            cfg.data.sources.update(sources)


def replay_share(cfg: DictConfig) -> float | None:
    """The share that the replayed sources have from the first step on; None where the mixture's own weights say it."""
    replay = cfg.stage.get("replay")
    return None if replay is None or REPLAY in cfg.data.sources else float(replay.share)


def initial_optimizer(cfg: DictConfig, parent: Parent) -> dict[str, Any] | None:
    """The state of the parent's optimizer after its last step, where `stage.optimizer_state` asks for it."""
    if cfg.stage.get("optimizer_state") != "parent":
        return None
    committed = list_committed(parent.run.checkpoints) if parent.run else []
    chosen = parent.folder if step_of(parent.folder) is not None else committed[-1] if committed else None
    if chosen is None:
        raise UserError(
            f"stage.optimizer_state=parent, but {parent.name} has no checkpoint, and only a run's checkpoints hold an "
            "optimizer: type stage.optimizer_state=fresh"
        )
    state = load_optimizer(chosen)
    if parent.grown_from is not None:
        forget_rows(state, parent.grown_from)
    return state


def _rate(cfg: DictConfig, parent: Parent) -> float:
    peak = parent.run.lineage().get("peak_lr") if parent.run else None
    if peak is None:
        raise UserError(
            f"stage.optimizer.lr is null, which means the parent's peak rate times stage.peak_ratio, but the rate of "
            f"{parent.name} is not known: type stage.optimizer.lr=... (1e-5 to 1e-4 is usual)"
        )
    return float(peak) * float(cfg.stage.peak_ratio)


def _generations(ancestors: Any) -> list[float] | None:
    """Weights of the parent, its parent, ...; None: all alike."""
    if ancestors == "all":
        return None
    return [1.0] * ancestors if isinstance(ancestors, int) else [float(weight) for weight in ancestors]


def _replayed(parent: Parent, weights: list[float] | None, *, share: float) -> dict[str, Any]:
    """The sources of the ancestors' mixtures, by the names that they have here."""
    runs = _ancestry(parent)
    if not runs and not share:
        return {}
    if not runs:
        raise UserError(
            f"stage.replay.share is {share:g}, but {parent.name} is no run, and what it was trained on is not known: "
            f"name a source {REPLAY} in the mixture (data.sources.{REPLAY}.hub=...), or type stage.replay.share=0"
        )
    chosen = runs if weights is None else runs[: len(weights)]
    out: dict[str, Any] = {}
    for generation, (run, weight) in enumerate(zip(chosen, weights or [1.0] * len(runs), strict=False)):
        own = _mixture(run)
        total = sum(s["weight"] for s in own.values())
        for name, source in own.items():
            full = f"{REPLAY}.{name}" if generation == 0 else f"{REPLAY}.{generation}.{name}"
            out[full] = {**source, "weight": weight * source["weight"] / total}
    return out


def _ancestry(parent: Parent) -> list[RunFolder]:
    """The runs that made the parent, itself first; it ends where a folder is gone or was not a run."""
    if parent.run is None:
        return []
    lineage = parent.run.lineage()
    before = [*lineage.get("ancestors", []), *([lineage["parent"]] if lineage.get("parent") else [])]
    runs = [parent.run]
    for entry in reversed(before):
        run = RunFolder(Path(entry["path"]))
        if not run.lineage().get("data"):
            break
        runs.append(run)
    return runs


def _mixture(run: RunFolder) -> dict[str, Any]:
    """The sources that a run was trained on, but for what it replayed itself, as they are read from anywhere."""
    data = run.lineage()["data"]
    seen: Mapping[str, Any] = data.get("sources", {})
    root = data["config"].get("root") or os.fspath(run.path.resolve().parents[1])
    out = {}
    for name, source in data["config"]["sources"].items():
        if name == REPLAY or name.startswith(f"{REPLAY}."):
            continue
        # what was seen, where that is known: a source that was used up has less than its weight
        tokens = sum(float(row["tokens"]) for part, row in seen.items() if part == name or is_level(part, name))
        weight = tokens or _mean(source.get("weight", 1.0))
        if not weight:  # measured, never trained on
            continue
        kept = {key: value for key, value in source.items() if key not in ("max_epochs", "rewards", "weight")}
        out[name] = {
            **kept,
            "domain": source.get("domain") or name,
            "weight": weight,
            **({"path": _from_root(source["path"], root)} if source.get("path") is not None else {}),
        }
    return out


def _mean(weight: Any) -> float:
    made = Weight.of(OmegaConf.to_container(weight) if isinstance(weight, DictConfig) else weight, "weight")
    return sum(made.at(step / 100) for step in range(101)) / 101


def _from_root(path: Any, root: str) -> Any:
    if isinstance(path, str):
        return path if is_remote(path) else os.path.join(root, path)
    if isinstance(path, Sequence):
        return [_from_root(part, root) for part in path]
    return {split: _from_root(part, root) for split, part in path.items()}
