"""What a run takes over from its parent besides weights: architecture, tokenizer, optimizer, data to replay.

    init_from=RUN                            the parent's architecture and tokenizer (grown: `vocabulary.py`); a model=
                                             beside it must be that architecture
    optimizer=                               none named: the parent's kind, in the stages that go on from a parent; for
                                             an adapter that of the config, since Muon's rates mean nothing there
    stage.optimizer.lr: null                 the parent's peak rate times stage.peak_ratio
    stage.replay: {share: 0.1, ancestors: 1} a share of every step is drawn from the parent's own mixture (`replay.py`)
    data.decontaminate                       what an ancestor kept out of its text stays out
    stage.optimizer_state: parent            the optimizer goes on with the parent's moments

`settled` writes all of it into a copy of the config before anything is built, so config.yaml holds what was really
used. What a stage takes over is declared on its class (`Stage.takes_over`).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lifecycle import config
from lifecycle.checkpoint import list_committed, step_of
from lifecycle.checkpoint.weights import is_sharded, load_optimizer
from lifecycle.data.mixture.batch_plan import REPLAY
from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent, find_parent, finished_runs
from lifecycle.lineage.replay import kept_out, replayed_sources, told_apart
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.lineage.score_head import refuse_score, with_score
from lifecycle.lineage.vocabulary import extended
from lifecycle.model import ModelConfig
from lifecycle.optim.carry import forget_rows
from lifecycle.stages.run.inheritance import OptimizerState, PeakRate, ReplayedData, Vocabulary


def adopted(cfg: DictConfig) -> Parent | None:
    """The parent that `init_from` names, with the tokens that the stage adds to its vocabulary, and with a score in
    place of its head for a stage that ends in one; None for fresh weights.

    Raises UserError where there is no such parent, or the command names another model than its own, or a tokenizer.
    """
    if cfg.init_from is None:
        return None
    parent = find_parent(str(cfg.init_from))
    typed = config.command_of(cfg).names("model=", "model.", "data.tokenizer")
    if typed and not _names_the_parents_own(cfg, parent):
        raise UserError(
            f"init_from={cfg.init_from} brings its own architecture and tokenizer, but {', '.join(typed)} asks for "
            "another: leave it out"
        )
    vocabulary = config.part(cfg.stage, Vocabulary)
    parent = parent if vocabulary is None else extended(parent, vocabulary)
    stage = config.stage_class(cfg.stage)
    if stage is not None and stage.ends_in_score:
        return with_score(parent, seed=cfg.seed)
    if stage is not None or "model" in config.asked_of_run(cfg.stage):
        refuse_score(parent, config.command_of(cfg).choices.get("stage") or "NAME")
    return parent


def _names_the_parents_own(cfg: DictConfig, parent: Parent) -> bool:
    """Whether the command names the architecture that the parent has, and no tokenizer; how many tokens it has is the
    tokenizer's."""
    if config.command_of(cfg).names("data.tokenizer", "model.vocab_size"):
        return False
    named: ModelConfig = config.build(cfg.model)
    return replace(named, vocab_size=parent.model.vocab_size) == parent.model


def settled(cfg: DictConfig, parent: Parent | None, teacher: Parent | None = None) -> DictConfig:
    """A copy of `cfg` with every value that comes from the parent filled in; a run without a parent, whose stage has a
    teacher, gets the tokenizer of that, unless the command names one. Raises UserError where the stage needs a
    parent and there is none, or where the parent lacks what the config takes from it.

    In a dry run without a parent the rate stays null and nothing is replayed.
    """
    made = copy.deepcopy(cfg)
    goes_on = (found := config.stage_class(cfg.stage)) is not None and found.starts_from_parent
    if parent is None:
        if goes_on and not cfg.dry_run:
            raise UserError(
                f"this stage goes on from a trained model, and init_from is null: type init_from=RUN, or a Hugging "
                f"Face folder or hub id; {finished_runs()}"
            )
        if made.adapter is not None and not cfg.dry_run:
            raise UserError(
                "an adapter is trained beside the weights of a finished model, and init_from is null: type "
                f"init_from=RUN, or adapter=none; {finished_runs()}"
            )
        if found is not None and found.ends_in_score:
            with open_dict(made):
                made.model.score_head = True
        if teacher is not None and not config.command_of(cfg).names("data.tokenizer"):
            with open_dict(made):
                made.data.tokenizer = config.literal(teacher.tokenizer)
        return made
    with open_dict(made):
        made.model = {"_target_": "lifecycle.model.ModelConfig", **parent.stated()}
        if parent.tokenizer is not None:
            made.data.tokenizer = config.literal(parent.tokenizer)
        if goes_on and made.adapter is None:
            made.stage.optimizer = _of_the_parents_kind(made, parent)
        rate = config.part(made.stage, PeakRate)
        if rate is not None and made.stage.optimizer.lr is None:
            made.stage.optimizer.lr = _peak(made, parent) * rate.peak_ratio
        data = config.resolved(made)["data"]
        made.data.sources.update(config.literal(_brought_back(made, parent, data)))
        if config.reads_data(made.stage):
            made.data.decontaminate = config.literal(kept_out(data["decontaminate"], data["root"], parent))
    return made


def _brought_back(cfg: DictConfig, parent: Parent, data: dict[str, Any]) -> dict[str, Any]:
    """The sources of the ancestors, where the stage replays and the user has named no source `replay`; also at a share
    of 0, where their held-out text is only measured."""
    taken = config.part(cfg.stage, ReplayedData)
    if taken is None or REPLAY in data["sources"]:
        return {}
    replay = taken.replay
    sources = replayed_sources(
        parent, replay.ancestors, share=replay.share, view=cfg.stage.view, functions=replay.functions or ()
    )
    return told_apart(sources, data["sources"], data["root"])


def replay_share(cfg: DictConfig) -> float | None:
    """The share that the replayed sources have from the first step on; None where the mixture's own weights say it."""
    taken = config.part(cfg.stage, ReplayedData)
    return None if taken is None or REPLAY in cfg.data.sources else taken.replay.share


def initial_optimizer(cfg: DictConfig, parent: Parent) -> dict[str, Any] | None:
    """The state of the optimizer that made the parent's weights, if `stage.optimizer_state` is `parent`; else None."""
    if not goes_on_with_optimizer(cfg):
        return None
    state = load_optimizer(optimizer_checkpoint(parent))
    if parent.grown_from is not None:
        forget_rows(state, parent.grown_from)
    return state


def goes_on_with_optimizer(cfg: DictConfig) -> bool:
    """Whether the run begins with the moments of its parent's optimizer."""
    taken = config.part(cfg.stage, OptimizerState)
    return taken is not None and taken.optimizer_state == "parent"


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
    """The checkpoint with the weights that a run exported: its last, or the one that a guard restored."""
    committed = {step_of(path) or 0: path for path in list_committed(run.checkpoints)} if run else {}
    return committed.get(run.lineage().get("restored") or max(committed)) if run and committed else None


def _of_the_parents_kind(cfg: DictConfig, parent: Parent) -> DictConfig:
    """The optimizer of the config; where the command names none, of the parent's kind (AdamW, Muon).

    Values that the stage, an experiment or the user has set are kept: those that differ from the file of the kind that
    is replaced.
    """
    own: DictConfig = cfg.stage.optimizer
    theirs, command = _optimizer(parent), config.command_of(cfg)
    choice = str(command.choices.get("optimizer"))
    folder = config.conf_dir() / "optimizer"
    if theirs is None or command.names("optimizer=") or not (folder / f"{choice}.yaml").is_file():
        return own
    kinds = {file.stem: DictConfig(OmegaConf.load(file)) for file in sorted(folder.glob("*.yaml"))}
    found = next((kind for kind in kinds.values() if kind["_target_"] == theirs), None)
    if found is None or found == kinds[choice]:
        return own
    set_by_someone = {k: v for k, v in own.items() if v != kinds[choice].get(k) and k in found}
    return DictConfig(OmegaConf.merge(found, set_by_someone))


def _optimizer(parent: Parent) -> str | None:
    """The class of the optimizer that a parent's run was trained with; None of a model from elsewhere, or of a job."""
    written = (parent.run.config() or {}) if parent.run else {}
    target = (written.get("stage", {}).get("optimizer") or {}).get("_target_")
    return None if target is None else str(target)


def _peak(cfg: DictConfig, parent: Parent) -> float:
    """The peak rate of the parent's run. Raises UserError where it is not known, or is of another kind of optimizer."""
    peak = parent.run.lineage().get("peak_lr") if parent.run else None
    if parent.run is None or peak is None:
        raise UserError(
            f"stage.optimizer.lr is null, which means the parent's peak rate times stage.peak_ratio, but the rate of "
            f"{parent.name} is not known: type stage.optimizer.lr=... (1e-5 to 1e-4 is usual)"
        )
    theirs, own = _optimizer(parent), str(cfg.stage.optimizer._target_)
    if theirs is not None and theirs != own:
        kind = theirs.rpartition(".")[2]
        choose = f"optimizer={kind.lower()}, or " if cfg.adapter is None else ""
        raise UserError(
            f"stage.optimizer.lr is null, which means the parent's peak rate times stage.peak_ratio, but {parent.name} "
            f"was trained with {kind}, whose rates mean nothing to {own.rpartition('.')[2]}: type {choose}"
            "stage.optimizer.lr=..."
        )
    return float(peak)
