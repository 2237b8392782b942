"""`dry_run=true`: what the run would cost, printed as tables. Starts nothing, writes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from lifecycle import config
from lifecycle.data.config import DataConfig
from lifecycle.data.loading.loader import micro_batch_rows
from lifecycle.data.mixture.plan import BatchPlan, largest, mixture, phases_of
from lifecycle.data.stream.prepared import prepared_folder, read_metas
from lifecycle.data.survey.level_sizes import LevelSize, survey_levels
from lifecycle.data.survey.source_size import SourceSize, known_tokenizer, survey
from lifecycle.duration import Limits, Timeline, ended_by_config
from lifecycle.errors import UserError
from lifecycle.estimate import curriculum_table, estimate, table
from lifecycle.hardware import Hardware, device_name, probe
from lifecycle.lineage.inherit import optimizer_checkpoint, replay_share
from lifecycle.lineage.parent import Parent
from lifecycle.lineage.retained import check_reach
from lifecycle.model import ModelConfig
from lifecycle.system.cache import made_cache_folder
from lifecycle.tokenizer.tokenizer import Tokenizer

EWC_COPIES = 2  # of the weights: the parent's, and the Fisher information of each


def dry_run(cfg: DictConfig, parent: Parent | None) -> None:
    """Print parameters, FLOPs, memory, tokens and epochs by source, steps, hours and disk of the run that `cfg` is."""
    if config.is_job(cfg):
        raise UserError("dry_run=true is for stages that train; this stage is a job, which is cheap: run it without")
    if parent is not None and cfg.stage.get("optimizer_state") == "parent":
        optimizer_checkpoint(parent)  # refuses what the run would
    limits: Limits = config.build_limits(cfg.stage)
    hardware: Hardware = config.build(cfg.hardware)
    data: DataConfig = config.build(cfg.data)
    shards = data.prepared
    tokenizer = known_tokenizer(str(prepared_folder(shards)) if shards else data.tokenizer)
    sizes = survey(
        data.sources,
        tokenizer=tokenizer,
        root=data.root,
        cache=made_cache_folder(),
        on_damage=data.bad_rows.damaged_files,
        shards={name: meta["training"]["tokens"] for name, meta in (read_metas(shards) if shards else {}).items()},
    )
    model = _model(cfg, tokenizer.vocab_size if tokenizer else getattr(data.tokenizer, "vocab_size", None))
    model.check_rows(limits.sequence_length)
    mix = mixture({name: spec.weight for name, spec in data.sources.items()}, replay_share(cfg))
    epoch_source = data.epoch_source or largest(mix)

    def planned(line: Timeline) -> dict[str, float]:
        return BatchPlan.of(mix, phases_of(line.segments), line.steps).planned(line.steps)

    def timeline_of(limits: Limits) -> Timeline:
        return limits.timeline(lambda: _known(epoch_source, sizes), lambda line: planned(line)[epoch_source])

    timeline = timeline_of(limits)
    check_reach(cfg, parent, timeline.steps)
    plan = BatchPlan.of(mix, phases_of(timeline.segments), timeline.steps)
    tokens = planned(timeline)
    devices = _devices(hardware)
    rows = limits.global_batch_tokens // limits.sequence_length // devices
    found = estimate.estimate(
        model,
        timeline=timeline,
        tokens_per_step=limits.global_batch_tokens,
        sequence_length=limits.sequence_length,
        micro_rows=max(micro_batch_rows(hardware.micro_batch_tokens)(limits.sequence_length, max(1, rows))),
        sources=[
            estimate.SourceEstimate(
                name=s.name, domain=s.domain, weight=tokens[s.name], tokens=s.tokens, max_epochs=s.max_epochs
            )
            for s in sizes
        ],
        hardware=hardware,
        world_size=devices,
        sharded=hardware.strategy == "fsdp",
        keep_last=cfg.checkpoint.keep_last,
        milestones=len(cfg.checkpoint.milestones) + (cfg.guard is not None and "restore" in cfg.guard.actions),
        checkpoint_every_steps=cfg.checkpoint.every_steps,
        kept_copies=EWC_COPIES if cfg.stage.get("ewc") is not None else 0,
        free_disk=shutil.disk_usage(_existing(Path.cwd())).free,
        **_device(hardware),
    )
    console = Console(soft_wrap=False)
    console.print(table.tables(found))
    for size in sizes:
        console.print(f"[dim]{size.name}: {size.how}[/dim]", highlight=False)
    levels = _levels(data, tokenizer)
    console.print(curriculum_table.tables(levels, found.sources))
    idle = plan.idle_workers(cfg.data.streams, devices, hardware.workers)
    ended = ended_by_config(limits, config.overrides(), timeline_of)
    for line in [*ended, *idle, *table.warnings(found), *curriculum_table.warnings(levels, found.sources)]:
        console.print(f"[yellow]{line}[/yellow]", highlight=False)


def _levels(data: DataConfig, tokenizer: Tokenizer | None) -> dict[str, list[LevelSize]]:
    """Of the sources under a curriculum; none without one."""
    if data.curriculum is None:
        return {}
    return survey_levels(
        data.curriculum,
        data.sources,
        tokenizer=tokenizer,
        root=data.root,
        cache=made_cache_folder(),
        on_damage=data.bad_rows.damaged_files,
    )


def _model(cfg: DictConfig, vocabulary: int | None) -> ModelConfig:
    model: ModelConfig = config.build(cfg.model)
    if model.vocab_size is None and vocabulary is None:
        raise UserError(
            f"the vocabulary is not known without the tokenizer '{cfg.data.tokenizer}', which cannot be reached now: "
            "set model.vocab_size for the dry run"
        )
    return model if vocabulary is None else model.with_vocab(vocabulary)


def _known(name: str, sizes: list[SourceSize]) -> int:
    size = next(s for s in sizes if s.name == name)
    if size.tokens is None:
        raise UserError(
            f"stage.max_epochs counts passes over '{name}', whose size is not known here: state "
            f"data.sources.{name}.tokens, or give stage.max_tokens"
        )
    return int(size.tokens)


def _devices(hardware: Hardware) -> int:
    """Devices of the run; `auto` counts as one where they are not here."""
    each = 1 if hardware.devices == "auto" else int(hardware.devices)
    return each * hardware.num_nodes


def _device(hardware: Hardware) -> dict[str, Any]:
    """Name, precision and peak of the device: this machine's for a CPU, by the config's name for a GPU elsewhere."""
    name = str(HydraConfig.get().runtime.choices["hardware"])
    here = hardware.accelerator == "cpu" or name == "gpu"
    if not here:
        precision = "fp32" if hardware.precision == "fp32" else "bf16"
        return {"device_name": name.split("x")[0], "precision": precision}
    kind = hardware.device_type()
    machine = probe(kind)
    precision = hardware.precision if hardware.precision != "auto" else ("bf16" if machine.has_bf16 else "fp32")
    peak = machine.bf16_flops if precision == "bf16" else machine.fp32_flops
    return {"device_name": device_name(kind), "precision": precision, "peak_flops": peak}


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
