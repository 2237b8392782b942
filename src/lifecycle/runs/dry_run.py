"""`dry_run=true`: what the run would cost, printed as tables. Starts nothing, writes nothing."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lifecycle import config
from lifecycle.data.clean.source import Source
from lifecycle.data.conversation.template_check import PROMPT, TEXT, open_template
from lifecycle.data.corpus import DataConfig
from lifecycle.data.mixture.batch_plan import BatchPlan, Mix, largest, mixture, phases_of
from lifecycle.data.stream.loading.loader import micro_batch_rows
from lifecycle.data.stream.packing import Packing
from lifecycle.data.stream.prepared import open_shards, other_view, prepared_folder, read_metas, with_formats
from lifecycle.data.survey.bucket_sizes import BucketSize, survey_buckets
from lifecycle.data.survey.item_sizes import AsItems
from lifecycle.data.survey.source_size import SourceSize, beginning, known_tokenizer, look_at, survey
from lifecycle.data.views import Maker
from lifecycle.duration import Limits, Timeline, ended_by_config
from lifecycle.errors import UserError
from lifecycle.estimate import curriculum_table, table
from lifecycle.estimate.estimate import BatchShape, CheckpointPlan, Estimate, RunDevice, SourceEstimate, estimate
from lifecycle.estimate.memory import BF16, FP32, TrainedAdapter
from lifecycle.estimate.sampling import SamplingPlan, sampling_of
from lifecycle.hardware import Hardware, device_name, probe
from lifecycle.hardware.device_specs import find_device
from lifecycle.lineage.inherit import goes_on_with_optimizer, optimizer_checkpoint
from lifecycle.model import Cache, ModelConfig
from lifecycle.model.adapters import matrices, size_of
from lifecycle.model.lora import Adapter
from lifecycle.runs.guarded import check_reach
from lifecycle.runs.plan import RunPlan
from lifecycle.stages.beside.critic import CRITIC, CRITIC_COPIES
from lifecycle.stages.reinforcement.settings import weighs_distance
from lifecycle.system.cache import made_cache_folder
from lifecycle.tokenizer.tokenizer import Tokenizer, TokenizerRecipe, train_bpe


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """The run as its config and the sizes of its sources give it, without its data.

    shares: of the tokens of every step, by source, as weights that may move. epoch_source: the source whose passes
    `stage.max_epochs` counts. view: of the stage.
    """

    shares: Mix
    epoch_source: str
    sizes: Sequence[SourceSize]
    view: str

    def batches(self, line: Timeline) -> BatchPlan:
        """What the steps of a run are made of."""
        phases = [replace(one, is_counted=self.view == PROMPT) for one in phases_of(line.segments)]
        return BatchPlan.of(self.shares, phases, line.steps)

    def tokens(self, line: Timeline) -> dict[str, float]:
        """What a run takes from each source; in the view `prompt` prompts."""
        return self.batches(line).planned(line.steps)

    def timeline(self, limits: Limits) -> Timeline:
        """How long the run is. Raises UserError where passes end it over a source of unknown size."""
        return limits.timeline(self._epoch_positions, lambda line: self.tokens(line)[self.epoch_source])

    def _epoch_positions(self) -> int:
        size = next(s for s in self.sizes if s.name == self.epoch_source)
        if size.tokens is None:
            raise UserError(
                f"stage.max_epochs counts passes over '{size.name}', whose size is not known here: state "
                f"data.sources.{size.name}.{'prompts' if self.view == PROMPT else 'tokens'}, or give stage.max_tokens"
            )
        if size.tokens == 0:
            raise UserError(
                f"stage.max_epochs counts passes over '{size.name}', of which nothing can be trained on: "
                f"{'; '.join(size.warnings) or size.how}"
            )
        return int(size.tokens)


def dry_run(plan: RunPlan) -> None:
    """Print parameters, FLOPs, memory, tokens and epochs by source, steps, hours and disk of the planned run.

    Raises UserError for a job, and for what the run itself would refuse before it reads its data.
    """
    limits, data = plan.limits, plan.data
    if limits is None:
        raise UserError("dry_run=true is for stages that train; this stage is a job, which is cheap: run it without")
    if plan.parent is not None and goes_on_with_optimizer(plan.config):
        optimizer_checkpoint(plan.parent)
    tokenizer = known_tokenizer(str(prepared_folder(data.prepared)) if data.prepared else data.tokenizer)
    planned = _planned(plan, limits, tokenizer)
    timeline = planned.timeline(limits)
    check_reach(plan.config, plan.parent, timeline.steps)
    model = _model(plan, tokenizer.vocab_size if tokenizer else getattr(data.tokenizer, "vocab_size", None))
    found = _estimate(plan, limits, model, timeline, planned)
    levels = _levels(data, tokenizer)
    ended = ended_by_config(limits, plan.command.typed, planned.timeline)
    idle = planned.batches(timeline).idle_workers(data.streams, _devices(plan.hardware), plan.hardware.workers)
    _print(found, planned.sizes, levels, [*ended, *idle], phases=timeline if limits.phases else None)


def _planned(plan: RunPlan, limits: Limits, tokenizer: Tokenizer | None) -> _Planned:
    data = plan.data
    shares = mixture({name: spec.weight for name, spec in data.sources.items()}, plan.replay_share)
    return _Planned(
        shares=shares,
        epoch_source=data.epoch_source or largest(shares),
        sizes=_sizes(data, limits, tokenizer),
        view=limits.view,
    )


def _print(
    found: Estimate,
    sizes: Sequence[SourceSize],
    levels: Mapping[str, Sequence[BucketSize]],
    notes: Sequence[str],
    *,
    phases: Timeline | None,
) -> None:
    """Tables first, then what the user should look at: `notes` on the command, and the warnings of the tables."""
    console = Console(soft_wrap=False)
    console.print(table.tables(found))
    if phases is not None:
        console.print(table.phases(phases))
    for size in sizes:
        console.print(f"[dim]{size.name}: {size.how}[/dim]", highlight=False)
    console.print(curriculum_table.tables(levels, found.sources))
    left_out = [warning for size in sizes for warning in size.warnings]
    for line in [*notes, *left_out, *table.warnings(found), *curriculum_table.warnings(levels, found.sources)]:
        console.print(f"[yellow]{line}[/yellow]", highlight=False)


def _sizes(data: DataConfig, limits: Limits, tokenizer: Tokenizer | None) -> list[SourceSize]:
    """What each source holds, as far as it can be told here."""
    metas = read_metas(data.prepared) if data.prepared else {}
    sources = look_at(
        with_formats(data.sources, metas),
        root=data.root,
        cache=made_cache_folder(),
        bad_rows=data.bad_rows,
        in_shards=metas,
        view=limits.view,
    )
    items = _items(data, limits, tokenizer, sources)
    return survey(
        sources, tokenizer=tokenizer, shards=_in_shards(data, metas, items), items=items, counts=limits.view == PROMPT
    )


def _items(data: DataConfig, limits: Limits, tokenizer: Tokenizer | None, sources: Sequence[Source]) -> AsItems | None:
    """How the run would make items of rows; None of documents, and where its tokenizer is on a hub that is not reached.

    A tokenizer still to be trained is tried as one that is trained on the beginnings of the sources. Raises UserError
    for a chat template that the run would refuse.
    """
    if limits.view == TEXT:
        return None
    texts = [row.text for source in sources for row in beginning(source) if row.text is not None]
    if tokenizer is None and isinstance(recipe := data.tokenizer, TokenizerRecipe) and texts:
        tokenizer = train_bpe(
            texts, vocab_size=recipe.vocab_size, digits=recipe.digits, special_tokens=recipe.special_tokens
        )
    if tokenizer is None:
        return None
    tokenizer, template = open_template(data.chat_template, tokenizer, view=limits.view, begun=False)
    make = Maker(view=limits.view, tokenizer=tokenizer, template=template)
    packing = Packing(view=limits.view, long_examples=data.long_examples)
    return AsItems(make=make, packing=packing, row_length=limits.sequence_length)


def _in_shards(data: DataConfig, metas: Mapping[str, Any], items: AsItems | None) -> dict[str, int]:
    """What a pass over each prepared source holds. Raises UserError for shards of another view."""
    found = {}
    for name, meta in metas.items():
        made = meta["training"]
        spec = data.sources.get(name)
        fault = other_view(made, (items.of(spec) if spec else items).make.key if items else TEXT)
        if fault is not None or data.prepared is None:
            raise UserError(
                f"data.prepared={data.prepared} does not fit data.sources: {name}: {fault}. Run stage=prepare again"
            )
        shards = open_shards(prepared_folder(data.prepared) / "prepared" / name / "training", made)
        found[name] = shards.positions(items.packing, items.row_length) if items else int(made["tokens"])
    return found


def _estimate(plan: RunPlan, limits: Limits, model: ModelConfig, timeline: Timeline, planned: _Planned) -> Estimate:
    cfg, hardware, devices, tokens = plan.config, plan.hardware, _devices(plan.hardware), planned.tokens(timeline)
    copies = plan.stage.weight_copies if plan.stage else {}
    rows = limits.positions // limits.sequence_length // devices
    micro_rows = max(micro_batch_rows(hardware.micro_batch_tokens)(limits.sequence_length, max(1, rows)))
    device = _device(plan)
    return estimate(
        model,
        timeline=timeline,
        unit="prompts" if limits.view == PROMPT else "tokens",
        batch=BatchShape(tokens=limits.positions, length=limits.sequence_length, micro_rows=micro_rows),
        sources=[
            SourceEstimate(
                name=s.name, domain=s.domain, weight=tokens[s.name], tokens=s.tokens, max_epochs=s.max_epochs
            )
            for s in planned.sizes
        ],
        hardware=hardware,
        world_size=devices,
        sharded=hardware.strategy == "fsdp",
        device=device,
        checkpoints=CheckpointPlan(
            keep_last=cfg.checkpoint.keep_last,
            milestones=len(cfg.checkpoint.milestones) + (cfg.guard is not None and "restore" in cfg.guard.actions),
            every_steps=cfg.checkpoint.every_steps,
        ),
        kept_copies=sum(number for key, number in copies.items() if cfg.stage.get(key) is not None)
        + _trained_beside(plan, model),
        frozen=_frozen(plan, model),
        adapter=None if plan.adapter is None else _adapter(plan.adapter, model),
        free_disk=shutil.disk_usage(_existing(Path.cwd())).free,
        repeats=_repeats(plan, model),
        sampling=_sampling(plan, limits, model, timeline, device),
    )


def _sampling(
    plan: RunPlan, limits: Limits, model: ModelConfig, timeline: Timeline, device: RunDevice
) -> SamplingPlan | None:
    """Of a stage that draws samples for its prompts; None of others."""
    stage = plan.config.stage
    if (drawing := stage.get("sampling")) is None or limits.prompts_per_step is None:
        return None
    prompts, size = (
        stage.get("chosen_per_step") or limits.prompts_per_step,
        BF16 if device.precision == "bf16" else FP32,
    )
    entry, samples = find_device(device.name), Counter[int]()
    for phase, steps in timeline.steps_by_segment():
        samples[prompts * phase.samples] += steps
    return sampling_of(
        prompts=prompts,
        samples=samples,
        tokens=drawing.max_new_tokens,
        longest=limits.sequence_length,
        slots=stage.slots,
        devices=_devices(plan.hardware),
        weights=float(size * model.parameters()),
        position=float(Cache.position_bytes(model, torch.bfloat16 if size == BF16 else torch.float32)),
        bandwidth=entry.bandwidth if entry else None,
    )


def _repeats(plan: RunPlan, model: ModelConfig) -> float:
    """How often each position is trained on; a forward pass alone is a third. Samples that are used in more than one
    update are asked for their log-probabilities first, and a critic for its values; a refreshed reference is asked,
    too, and a model that is its own, without its adapter."""
    stage = plan.config.stage
    passes = int(stage.get("passes_per_rollout") or 1)
    again = passes * int(stage.get("updates_per_rollout") or 1) > 1 or stage.get("critic") is not None
    own = plan.adapter is not None and weighs_distance(config.resolved(plan.config)["stage"])
    critic = _critic(plan, model)
    refreshed = _copies(plan) - CRITIC_COPIES * (critic > 0)
    return passes + (again + own + refreshed) / 3 + critic * (passes + 1 / 3)


def _adapter(adapter: Adapter, model: ModelConfig) -> TrainedAdapter:
    small = sum(shape.numel() for shape in matrices(model).values()) if adapter.bits else 0
    return TrainedAdapter(parameters=size_of(model, adapter).parameters, in_4_bits=small, merge=adapter.merge)


def _trained_beside(plan: RunPlan, model: ModelConfig) -> float:
    """Copies of the weights that take as much as what the stage trains beside them: a critic may be of another size."""
    critic = _critic(plan, model)
    return _copies(plan) + CRITIC_COPIES * (critic - (critic > 0))


def _copies(plan: RunPlan) -> int:
    """The same, of a critic that has the sizes of the model."""
    return plan.stage.trained_copies(config.resolved(plan.config)) if plan.stage else 0


def _critic(plan: RunPlan, model: ModelConfig) -> float:
    """Parameters of a critic of its own, as a multiple of the model's; 0 where there is none."""
    if (plan.config.stage.get("critic") or {}).get("kind") != "separate":
        return 0.0
    own = plan.models.get(CRITIC)
    return 1.0 if own is None else own.model.parameters() / model.parameters()


def _frozen(plan: RunPlan, model: ModelConfig) -> int:
    """Parameters of the networks that the stage only asks: copies of its own, and others of any size."""
    copies = plan.stage.frozen_copies(config.resolved(plan.config)) if plan.stage else 0
    asked = [one for key, one in plan.models.items() if key != CRITIC]  # which is trained
    others = [*([plan.teacher] if plan.teacher else []), *asked]
    return copies * model.parameters() + sum(one.model.parameters() for one in others)


def _levels(data: DataConfig, tokenizer: Tokenizer | None) -> dict[str, list[BucketSize]]:
    """Of the sources under a curriculum; none without one."""
    if data.curriculum is None:
        return {}
    return survey_buckets(
        data.curriculum,
        data.sources,
        tokenizer=tokenizer,
        root=data.root,
        cache=made_cache_folder(),
        on_damage=data.bad_rows.damaged_files,
    )


def _model(plan: RunPlan, vocabulary: int | None) -> ModelConfig:
    model = plan.model
    if model.vocab_size is None and vocabulary is None:
        raise UserError(
            f"the vocabulary is not known without the tokenizer '{plan.data.tokenizer}', which cannot be reached now: "
            "set model.vocab_size for the dry run"
        )
    return model if vocabulary is None else model.with_vocab(vocabulary)


def _devices(hardware: Hardware) -> int:
    """Devices of the run; `auto` counts as one where they are not here."""
    each = 1 if hardware.devices == "auto" else int(hardware.devices)
    return each * hardware.num_nodes


def _device(plan: RunPlan) -> RunDevice:
    """One device of the run: this machine's for a CPU, by the config's name for a GPU elsewhere."""
    hardware, name = plan.hardware, plan.command.choices.get("hardware") or "gpu"
    if hardware.accelerator != "cpu" and name != "gpu":
        return RunDevice(name=name.split("x")[0], precision="fp32" if hardware.precision == "fp32" else "bf16")
    kind = hardware.device_type()
    machine = probe(kind)
    precision = hardware.precision if hardware.precision != "auto" else ("bf16" if machine.has_bf16 else "fp32")
    peak = machine.bf16_flops if precision == "bf16" else machine.fp32_flops
    return RunDevice(name=device_name(kind), precision=precision, peak_flops=peak)


def _existing(path: Path) -> Path:
    """The nearest folder above `path` that exists, so that the free space of its disk can be read."""
    while not path.exists():
        path = path.parent
    return path
