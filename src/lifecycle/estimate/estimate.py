"""What a run will cost, before it costs anything: the numbers behind `dry_run=true` (`table.py` prints them).

Memory is of one device and counted in GB of 10^9 bytes (`memory.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lifecycle.duration import Timeline
from lifecycle.estimate.memory import FP32, GB, WORKSPACE_GUESS, Memory, ModelLike, memory_of
from lifecycle.hardware import Hardware
from lifecycle.hardware.device_specs import find_device

CHECKPOINT_BYTES_PER_S = 1.0 * GB
"""Guess of hashing and writing to a local disk, in the background; copying out of the device is faster."""

MFU_ROWS = (0.4, 0.5, 0.6)


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
class Estimate:
    """All that `dry_run=true` prints. `hours`: share of the peak -> hours of the whole run."""

    parameters: int
    active: int
    embedding: int
    flops_per_token: float
    tokens_per_step: int
    sequence_length: int
    micro_rows: int
    micro_batches: int
    steps: int
    tokens: int
    precision: str
    world_size: int
    sharded: bool
    device: str
    device_peak: float | None
    device_memory: float | None
    memory: Memory
    rows_that_fit: int | None
    sources: tuple[SourcePlan, ...]
    hours: dict[float, float] | None
    disk: Disk
    free_disk: float | None


def estimate(
    model: ModelLike,
    *,
    timeline: Timeline,
    tokens_per_step: int,
    sequence_length: int,
    micro_rows: int,
    sources: Sequence[SourceEstimate],
    hardware: Hardware,
    world_size: int,
    sharded: bool,
    precision: Literal["fp32", "bf16"] = "bf16",
    optimizer_states_per_param: int = 2,
    kept_copies: int = 0,
    logits_chunk_tokens: int = 1024,
    device_name: str = "",
    peak_flops: float | None = None,
    device_memory: float | None = None,
    keep_last: int = 3,
    milestones: int = 0,
    checkpoint_every_steps: int | None = None,
    free_disk: float | None = None,
) -> Estimate:
    """Count everything; start nothing. `tokens_per_step` is global; `micro_rows` is of one device.

    `device_name` (torch's, or the name of the hardware config) is looked up for peak and memory where `peak_flops`
    (FLOP/s of one device), `hardware.peak_tflops` and `device_memory` (bytes) do not say them. `kept_copies` of the
    weights are in memory and in every checkpoint.
    """
    entry = find_device(device_name)
    peak = peak_flops if peak_flops is not None else hardware.peak(device_name, precision)
    room = device_memory if device_memory is not None else (entry.memory_gb * GB if entry else None)
    on_gpu = entry is not None or hardware.accelerator == "gpu"
    memory, per_row = memory_of(
        model,
        rows=micro_rows,
        length=sequence_length,
        precision=precision,
        states=optimizer_states_per_param,
        kept=kept_copies,
        shards=world_size if sharded else 1,
        chunk=logits_chunk_tokens,
        checkpointing=hardware.activation_checkpointing,
        compiled=on_gpu if hardware.compile == "auto" else hardware.compile,
        workspace=WORKSPACE_GUESS["cuda" if on_gpu else "cpu"],
    )
    steps, tokens = timeline.steps, timeline.tokens()
    work = sum(count * model.flops_per_token(length) for length, count in timeline.tokens_by_length().items())
    return Estimate(
        parameters=model.parameters(),
        active=model.active_parameters(),
        embedding=(model.vocab_size or 0) * model.width * (1 if model.tied_head else 2),
        flops_per_token=model.flops_per_token(sequence_length),
        tokens_per_step=tokens_per_step,
        sequence_length=sequence_length,
        micro_rows=micro_rows,
        micro_batches=-(-tokens_per_step // (micro_rows * sequence_length * world_size)),
        steps=steps,
        tokens=tokens,
        precision=precision,
        world_size=world_size,
        sharded=sharded,
        device=entry.name if entry else device_name or hardware.accelerator,
        device_peak=peak,
        device_memory=room,
        memory=memory,
        rows_that_fit=None if room is None else max(0, int((room - memory.state - memory.logits) // per_row)),
        sources=_sources(sources, tokens),
        hours=None if peak is None else {m: work / (peak * world_size * m) / 3600 for m in MFU_ROWS},
        disk=_disk(
            model, optimizer_states_per_param + kept_copies, keep_last, milestones, steps, checkpoint_every_steps
        ),
        free_disk=free_disk,
    )


def _sources(sources: Sequence[SourceEstimate], tokens: int) -> tuple[SourcePlan, ...]:
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


def _disk(model: ModelLike, states: int, keep_last: int, milestones: int, steps: int, every_steps: int | None) -> Disk:
    size = float(FP32 * (1 + states) * model.parameters())
    written = steps // every_steps if every_steps else 0
    return Disk(
        checkpoint=size,
        export=float(FP32 * model.parameters()),
        kept=keep_last + 1 + milestones,
        seconds=size / CHECKPOINT_BYTES_PER_S,
        per_run=written,
    )
