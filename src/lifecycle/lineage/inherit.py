"""What a stage takes over from its parent besides weights and tokenizer: its rate, its data to replay, its moments.

    optimizer=                               none named: the parent's kind, in the stages that go on from a parent
    stage.optimizer.lr: null                 the parent's peak rate times stage.peak_ratio
    stage.replay: {share: 0.1, ancestors: 1} a share of every step is drawn from the parent's own mixture (`replay.py`)
    data.decontaminate                       what an ancestor kept out of its text stays out
    stage.optimizer_state: parent            the optimizer goes on with the parent's moments

All of it is written into the config before anything is built, so config.yaml says what was really done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from lifecycle import config
from lifecycle.checkpoint import list_committed, step_of
from lifecycle.checkpoint.weights import is_sharded, load_optimizer
from lifecycle.data.mixture.plan import REPLAY
from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent, finished_runs
from lifecycle.lineage.replay import kept_out, replayed_sources, told_apart
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.optim.carry import forget_rows


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
    if config.starts_from_parent(cfg.stage):
        _take_kind(cfg, parent)
    if "optimizer" in cfg.stage and cfg.stage.optimizer.lr is None:
        cfg.stage.optimizer.lr = _rate(cfg, parent)
    replay = cfg.stage.get("replay")
    if replay is not None and REPLAY not in cfg.data.sources:
        # also at a share of 0: what the parent knew is measured
        sources = replayed_sources(parent, replay.ancestors, share=replay.share, functions=replay.functions or ())
        data = config.resolved(cfg)["data"]
        with open_dict(cfg):
            cfg.data.sources.update(config.literal(told_apart(sources, data["sources"], data["root"])))
    if not config.is_model_job(cfg):  # else no data is read
        data = config.resolved(cfg)["data"]
        cfg.data.decontaminate = config.literal(kept_out(data["decontaminate"], data["root"], parent))


def replay_share(cfg: DictConfig) -> float | None:
    """The share that the replayed sources have from the first step on; None where the mixture's own weights say it."""
    replay = cfg.stage.get("replay")
    return None if replay is None or REPLAY in cfg.data.sources else float(replay.share)


def initial_optimizer(cfg: DictConfig, parent: Parent) -> dict[str, Any] | None:
    """The state of the optimizer that made the parent's weights, where `stage.optimizer_state` asks for it."""
    if cfg.stage.get("optimizer_state") != "parent":
        return None
    state = load_optimizer(optimizer_checkpoint(parent))
    if parent.grown_from is not None:
        forget_rows(state, parent.grown_from)
    return state


def optimizer_checkpoint(parent: Parent) -> Path:
    """The checkpoint whose optimizer made the parent's weights. Raises UserError without one, and for one in shards."""
    chosen = parent.folder if step_of(parent.folder) is not None else _exported(parent.run)
    if chosen is None:
        raise UserError(
            f"stage.optimizer_state=parent, but {parent.name} has no checkpoint, and only a run's checkpoints hold an "
            "optimizer: type stage.optimizer_state=fresh"
        )
    if is_sharded(chosen):
        raise UserError(
            f"stage.optimizer_state=parent, but {chosen} was saved by hardware.strategy=fsdp, and the optimizer in its "
            "shards cannot be taken over: type stage.optimizer_state=fresh"
        )
    return chosen


def _exported(run: RunFolder | None) -> Path | None:
    """The checkpoint that a run's exported weights are of: its last, or the one that a guard went back to."""
    committed = {step_of(path) or 0: path for path in list_committed(run.checkpoints)} if run else {}
    return committed.get(run.lineage().get("restored") or max(committed)) if run and committed else None


def _take_kind(cfg: DictConfig, parent: Parent) -> None:
    """The parent's kind of optimizer where the command line names none, as if it had been chosen there.

    What the stage, an experiment or the user has set stays: all that is not as in the file of the kind that goes.
    """
    theirs = _optimizer(parent)
    choice = str(HydraConfig.get().runtime.choices.get("optimizer"))
    folder = config.conf_dir() / "optimizer"
    if theirs is None or _named("optimizer=") or not (folder / f"{choice}.yaml").is_file():
        return
    kinds = {file.stem: DictConfig(OmegaConf.load(file)) for file in sorted(folder.glob("*.yaml"))}
    found = next((kind for kind in kinds.values() if kind["_target_"] == theirs), None)
    if found is None or found == kinds[choice]:
        return
    own = {k: v for k, v in cfg.stage.optimizer.items() if v != kinds[choice].get(k) and k in found}
    with open_dict(cfg):
        cfg.stage.optimizer = OmegaConf.merge(found, own)


def _named(key: str) -> bool:
    return any(word.lstrip("+").startswith(key) for word in config.overrides())


def _optimizer(parent: Parent) -> str | None:
    """The class of the optimizer that a parent's run was trained with; None of a model from elsewhere, or of a job."""
    written = (parent.run.config() or {}) if parent.run else {}
    target = (written.get("stage", {}).get("optimizer") or {}).get("_target_")
    return None if target is None else str(target)


def _rate(cfg: DictConfig, parent: Parent) -> float:
    peak = parent.run.lineage().get("peak_lr") if parent.run else None
    if parent.run is None or peak is None:
        raise UserError(
            f"stage.optimizer.lr is null, which means the parent's peak rate times stage.peak_ratio, but the rate of "
            f"{parent.name} is not known: type stage.optimizer.lr=... (1e-5 to 1e-4 is usual)"
        )
    theirs, own = _optimizer(parent), str(cfg.stage.optimizer._target_)
    if theirs is not None and theirs != own:
        kind = theirs.rpartition(".")[2]
        raise UserError(
            f"stage.optimizer.lr is null, which means the parent's peak rate times stage.peak_ratio, but {parent.name} "
            f"was trained with {kind}, whose rates mean nothing to {own.rpartition('.')[2]}: type "
            f"optimizer={kind.lower()}, or stage.optimizer.lr=..."
        )
    return float(peak) * float(cfg.stage.peak_ratio)
