"""The plan of a run: a composed config and its parent, resolved once into one frozen object that all else reads.

    compose -> check -> plan -> data -> stage -> trainer -> fit -> results

Nothing changes the config after this. It holds what is really used, as config.yaml does, except what the machine
chooses at the start (`resume.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lifecycle import config
from lifecycle.config import Command
from lifecycle.data.corpus import DataConfig
from lifecycle.data.stream.open_sources import check_views
from lifecycle.duration import Limits
from lifecycle.errors import UserError
from lifecycle.hardware import Hardware
from lifecycle.lineage.asked import asked_models
from lifecycle.lineage.inherit import adopted, replay_share, settled
from lifecycle.lineage.parent import Parent
from lifecycle.lineage.revisions import Pinned, pin, with_revisions
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.lineage.teacher import teacher_of
from lifecycle.model import ModelConfig
from lifecycle.model.adapters import check_adapter
from lifecycle.model.lora import Adapter
from lifecycle.runs.guarded import check_guard
from lifecycle.stages.base import Stage


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """One run of one stage or job.

    config: the settled config, read-only. name: of the stage or job, as it was chosen. stage: its class; None for a
    job. asked: names of its parameters that the run supplies. teacher: of a
    stage that learns from one. model: its vocabulary may be unknown until the tokenizer
    is loaded. limits: the length of the run; None for a job. replay_share: share of every step's tokens that is
    replayed; None where the weights of the mixture determine it. generation: the parent's generation_config.json (stop
    ids, sampling settings), for the export. revisions: the commits of hub data sets. adapter: None where all
    weights are trained.
    """

    config: DictConfig
    command: Command
    name: str
    folder: RunFolder
    stage: type[Stage] | None
    asked: frozenset[str]
    parent: Parent | None
    teacher: Parent | None
    models: Mapping[str, Parent]
    hardware: Hardware
    model: ModelConfig
    data: DataConfig
    limits: Limits | None
    replay_share: float | None
    generation: Mapping[str, Any]
    revisions: Pinned
    adapter: Adapter | None

    @property
    def reads_data(self) -> bool:
        """Whether it opens the data of the config. Such a run writes its folder as it goes; a job that reads none
        writes it at the end, so one that fails leaves the last result as it was."""
        return self.stage is not None or "data" in self.asked

    @property
    def replaces_last(self) -> bool:
        """Whether it may replace the content of its folder: for a job that reads no data and has no run=NAME, where
        that is a result of the same job."""
        named = bool(self.command.names("run=")) or not self.command.choices
        if self.reads_data or named:
            return False
        then = self.folder.config()
        return then is None or _job_name(then["stage"].get("_target_")) == _job_name(self.config.stage._target_)


def make_plan(cfg: DictConfig) -> RunPlan:
    """The plan of a checked config, which is not changed. Raises UserError where parent, guard or data do not fit."""
    command = config.command_of(cfg)
    folder, parent, teacher = RunFolder(Path(command.folder)), adopted(cfg), teacher_of(cfg)
    models = asked_models(cfg)
    made, stage = settled(cfg, parent, teacher), config.stage_class(cfg.stage)
    check_guard(made, parent)
    pinned = _fetched(made, folder) if config.reads_data(cfg.stage) and not cfg.dry_run else {}
    made = with_revisions(made, pinned)
    OmegaConf.set_readonly(made, True)
    model: ModelConfig = config.build(made.model)
    if model.score_head and stage is not None and not stage.ends_in_score:
        raise UserError("model.score_head is true, but this stage trains a model that predicts tokens; leave it out")
    limits = config.part(made.stage, Limits)
    if limits is not None:
        model.check_rows(limits.sequence_length)
    return RunPlan(
        config=made,
        command=command,
        name=command.choices.get("stage") or named_by(cfg.stage._target_),
        folder=folder,
        stage=stage,
        asked=config.asked_of_run(made.stage),
        parent=parent,
        teacher=teacher,
        models=models,
        hardware=config.build(made.hardware),
        model=model,
        data=config.build(made.data),
        limits=limits,
        replay_share=replay_share(made),
        generation=parent.generation if parent else {},
        revisions=pinned,
        adapter=None if made.adapter is None else _adapter(made, model),
    )


def named_by(target: Any) -> str:
    """The stage or job of a `_target_`, which stands in a module of its name; of one without a module, the target."""
    return str(target).split(".")[-2:][0]


def _fetched(cfg: DictConfig, folder: RunFolder) -> Pinned:
    """The commits of hub data sets, once it is known that they are of use: a source whose format is named may not give
    what the stage trains on."""
    data: DataConfig = config.build(cfg.data)
    if "view" in cfg.stage and data.prepared is None:
        known = {name: spec for name, spec in data.sources.items() if spec.format != "auto"}
        placed = {name: spec for name, spec in known.items() if spec.hub or spec.path}  # else the name is a slip, say
        check_views(placed, cfg.stage.view)
    return pin(cfg, folder)


def _adapter(cfg: DictConfig, model: ModelConfig) -> Adapter:
    """The adapter of the config. Raises UserError where the model cannot have it, or this machine."""
    adapter: Adapter = config.build(cfg.adapter)
    hardware: Hardware = config.build(cfg.hardware)
    if adapter.bits is not None and hardware.device_type() != "cuda" and not cfg.dry_run:
        raise UserError(
            f"adapter.bits is {adapter.bits}, and weights of 4 bits are multiplied on CUDA GPUs alone; this run is on "
            f"{hardware.device_type()}: type adapter=lora"
        )
    known = model if model.vocab_size is not None else model.with_vocab(1)
    check_adapter(known, adapter)
    return adapter


def _job_name(target: Any) -> str:
    """The name of a job's function; its module may have another name in older config files."""
    return str(target).rpartition(".")[2]
