"""The cost of a run, estimated before it starts: the numbers of `dry_run=true` (`table.py` prints them).

Memory is of one device and counted in GB of 10^9 bytes (`memory.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lifecycle.duration import Timeline
from lifecycle.estimate.memory import FP32, GB, WORKSPACE_GUESS, Memory, ModelLike, TrainedAdapter, memory_of
from lifecycle.estimate.sampling import SamplingPlan
from lifecycle.hardware import Hardware
from lifecycle.hardware.device_specs import find_device

CHECKPOINT_BYTES_PER_S = 1.0 * GB
"""Guess of hashing and writing to a local disk, in the background; copying out of the device is faster."""

MFU_ROWS = (0.4, 0.5, 0.6)
"""Shares of the peak that the hours are given for."""

OPTIMIZER_STATES = 2
"""Numbers that the optimizer keeps of each parameter: two moments of AdamW; Muon keeps one of some."""

LOGITS_CHUNK_TOKENS = 1024
"""Tokens whose logits exist at one time, as the loss computes them."""


@dataclass(frozen=True, kw_only=True)
class SourceEstimate:
    """One source before the run: `tokens` it holds (None: unknown, streamed), how often it may be repeated."""

    name: str
    domain: str
    weight: float
    tokens: float | None
    max_epochs: float | None


@dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """What the run would take from a source. `epochs` is None where the size is unknown."""

    name: str
    domain: str
    share: float
    tokens: float
    available: float | None
    epochs: float | None
    max_epochs: float | None

    @property
    def too_often(self) -> bool:
        """Whether the plan repeats the source more often than it may."""
        return self.epochs is not None and self.max_epochs is not None and self.epochs > self.max_epochs


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes of one checkpoint and of the export, how many are kept at most, and the guessed seconds to write one."""

    checkpoint: float
    export: float
    kept: int
    seconds: float
    per_run: int

    @property
    def total(self) -> float:
        """At most at one time: the kept checkpoints, the one being written, and the export."""
        return self.checkpoint * (self.kept + 1) + self.export


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """tokens: of a step, over all devices. length: positions of a sequence. micro_rows: sequences of a micro-batch on
    one device."""

    tokens: int
    length: int
    micro_rows: int


@dataclass(frozen=True, kw_only=True)
class RunDevice:
    """One device of the run. name: torch's, or that of the hardware config. peak_flops: FLOP/s of dense matrix products
    in `precision`, memory: bytes; None: not known (yet)."""

    name: str = ""
    precision: Literal["fp32", "bf16"] = "bf16"
    peak_flops: float | None = None
    memory: float | None = None

    def looked_up(self, hardware: Hardware) -> RunDevice:
        """The same, where something is not known, with what the config and the table of data sheets say."""
        entry, peak, memory = find_device(self.name), self.peak_flops, self.memory
        return replace(
            self,
            name=entry.name if entry else self.name or hardware.accelerator,
            peak_flops=hardware.peak(self.name, self.precision) if peak is None else peak,
            memory=entry.memory_gb * GB if memory is None and entry else memory,
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointPlan:
    """Checkpoints of the run: how many of the last ones and of the milestones are kept, how often one is written."""

    keep_last: int = 3
    milestones: int = 0
    every_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """All that `dry_run=true` prints.

    trained: parameters, those of an adapter where there is one. embedding: parameters of the embedding and the head.
    steps, tokens: of the whole run. rows_that_fit: sequences of a micro-batch that the device's memory holds, None
    where that is unknown. hours: share of the peak -> hours of the whole run, None without a peak; of a run that draws
    samples without that. sampling: of such a run. free_disk: bytes.
    """

    parameters: int
    trained: int
    active: int
    embedding: int
    flops_per_token: float
    batch: BatchShape
    steps: int
    tokens: int
    world_size: int
    sharded: bool
    device: RunDevice
    memory: Memory
    rows_that_fit: int | None
    sources: tuple[SourcePlan, ...]
    unit: str
    hours: dict[float, float] | None
    disk: Disk
    free_disk: float | None
    sampling: SamplingPlan | None = None

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step, on each device."""
        return -(-self.batch.tokens // (self.batch.micro_rows * self.batch.length * self.world_size))


def estimate(
    model: ModelLike,
    *,
    timeline: Timeline,
    batch: BatchShape,
    sources: Sequence[SourceEstimate],
    hardware: Hardware,
    world_size: int,
    sharded: bool,
    device: RunDevice,
    checkpoints: CheckpointPlan,
    kept_copies: float = 0,
    frozen: int = 0,
    adapter: TrainedAdapter | None = None,
    free_disk: float | None = None,
    unit: str = "tokens",
    repeats: float = 1.0,
    sampling: SamplingPlan | None = None,
) -> Estimate:
    """Count everything; start nothing. kept_copies: of the weights, in memory and in every checkpoint. frozen:
    parameters of networks that only make a forward pass for every token, and are in no checkpoint. adapter: what is
    trained; None: all weights. free_disk: bytes. unit: what sources are counted in; of prompts, a row is one. repeats:
    how often each position is trained on, a forward pass alone counted as a third. sampling: of a run that draws."""
    found, tokens, shards = device.looked_up(hardware), timeline.tokens(), world_size if sharded else 1
    memory, per_row = _memory(
        model, batch, hardware, device, shards=shards, kept=kept_copies, frozen=frozen, adapter=adapter
    )
    memory = replace(memory, cache=sampling.cache if sampling else 0.0)
    return Estimate(
        parameters=model.parameters(),
        trained=model.parameters() if adapter is None else adapter.parameters,
        active=model.active_parameters(),
        embedding=model.edge_parameters(),
        flops_per_token=model.flops_per_token(batch.length),
        batch=batch,
        steps=timeline.steps,
        tokens=tokens,
        world_size=world_size,
        sharded=sharded,
        device=found,
        memory=memory,
        rows_that_fit=memory.rows_that_fit(found.memory, per_row),
        sources=_sources(sources, tokens if unit == "tokens" else sum(source.weight for source in sources)),
        unit=unit,
        hours=_hours(
            model,
            timeline,
            found.peak_flops,
            world_size,
            repeats=repeats + frozen / 3 / model.parameters(),
            adapter=adapter,
        ),
        disk=_disk(model, OPTIMIZER_STATES + kept_copies, checkpoints, timeline.steps, adapter),
        free_disk=free_disk,
        sampling=sampling,
    )


def _memory(
    model: ModelLike,
    batch: BatchShape,
    hardware: Hardware,
    device: RunDevice,
    *,
    shards: int,
    kept: float,
    frozen: int,
    adapter: TrainedAdapter | None,
) -> tuple[Memory, float]:
    """Memory of the chosen batch, and bytes of one sequence more. device: by the name that the table knows."""
    on_gpu = hardware.accelerator == "gpu" or find_device(device.name) is not None
    return memory_of(
        model,
        rows=batch.micro_rows,
        length=batch.length,
        precision=device.precision,
        states=OPTIMIZER_STATES,
        kept=kept,
        frozen=frozen,
        adapter=adapter,
        shards=shards,
        chunk=LOGITS_CHUNK_TOKENS,
        checkpointing=hardware.activation_checkpointing,
        compiled=on_gpu if hardware.compile == "auto" else hardware.compile,
        workspace=WORKSPACE_GUESS["cuda" if on_gpu else "cpu"],
    )


def _hours(
    model: ModelLike,
    timeline: Timeline,
    peak_flops: float | None,
    world_size: int,
    *,
    repeats: float,
    adapter: TrainedAdapter | None,
) -> dict[float, float] | None:
    """Hours of the run at each share of the peak that training may reach. repeats: how often each position is computed;
    networks that are only asked have no backward pass, and count a third. Frozen weights need no gradients of their
    own, a third of the work of their products; an adapter's own products are counted as those of weights."""
    if peak_flops is None:
        return None
    less = 0 if adapter is None else 2 * model.active_parameters() - 6 * adapter.parameters
    trained = sum(
        count * (model.flops_per_token(length) - less) for length, count in timeline.tokens_by_length().items()
    )
    work = trained * repeats
    return {share: work / (peak_flops * world_size * share) / 3600 for share in MFU_ROWS}


def _sources(sources: Sequence[SourceEstimate], tokens: float) -> tuple[SourcePlan, ...]:
    whole = sum(source.weight for source in sources)
    plans = []
    for source in sources:
        planned = tokens * source.weight / whole
        plans.append(
            SourcePlan(
                name=source.name,
                domain=source.domain,
                share=source.weight / whole,
                tokens=planned,
                available=source.tokens,
                epochs=planned / source.tokens if source.tokens else None,
                max_epochs=source.max_epochs,
            )
        )
    return tuple(plans)


def _disk(
    model: ModelLike, copies: float, checkpoints: CheckpointPlan, steps: int, adapter: TrainedAdapter | None
) -> Disk:
    """copies: of what is trained, that a checkpoint has beside it: states of the optimizer and what the stage keeps."""
    size = float(FP32 * (1 + copies) * (model.parameters() if adapter is None else adapter.parameters))
    exported = 0 if adapter is None else adapter.parameters
    if adapter is None or adapter.merge:
        exported += model.parameters()
    return Disk(
        checkpoint=size,
        export=float(FP32 * exported),
        kept=checkpoints.keep_last + 1 + checkpoints.milestones,
        seconds=size / CHECKPOINT_BYTES_PER_S,
        per_run=steps // checkpoints.every_steps if checkpoints.every_steps else 0,
    )
