"""The estimate as text for readers: rich tables on a terminal, the same as plain text in a log."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lifecycle.duration import Timeline
from lifecycle.estimate.estimate import CHECKPOINT_BYTES_PER_S, GB, Estimate
from lifecycle.estimate.sampling import SamplingPlan
from lifecycle.hardware.device_specs import FLOPS_CONVENTION

CONVENTION = (
    f"{FLOPS_CONVENTION}; the peak is dense, without sparsity. Hours leave out compilation, validation and checkpoints."
)

CHANGES = ("rate", "temperature", "KL", "rope")
"""Of a phase: columns of its table."""


def tables(estimate: Estimate) -> Group:
    """All parts as one rich renderable. `warnings` are apart: they belong at the very end, where they are seen."""
    drawn = [] if estimate.sampling is None else [_sampling(estimate.sampling)]
    parts = [_model(estimate), _time(estimate), *drawn, _sources(estimate), _memory(estimate), _disk(estimate)]
    return Group(*parts, Text(CONVENTION, style="dim"))


def plain(estimate: Estimate, width: int = 110) -> str:
    """Tables and warnings as text without colour."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(tables(estimate))
    for line in warnings(estimate):
        console.print(line, highlight=False)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def warnings(estimate: Estimate) -> list[str]:
    """Lines on what would go wrong in the run, each with what to type; empty where nothing would."""
    found = []
    need, room = estimate.memory.total, estimate.device.memory
    if room is not None and need > room:
        found.append(_too_big(estimate, need, room))
    for source in estimate.sources:
        if source.too_often:
            found.append(
                f"{source.name} would be read {source.epochs:.1f} times, data.sources.{source.name}.max_epochs allows "
                f"{source.max_epochs:g}: lower its weight or the run's tokens, or raise max_epochs"
            )
    if estimate.free_disk is not None and estimate.disk.total > estimate.free_disk:
        found.append(
            f"checkpoints need {_gb(estimate.disk.total)}, the disk has {_gb(estimate.free_disk)} free: lower "
            "checkpoint.keep_last, or run from another folder"
        )
    if estimate.device.peak_flops is None:
        found.append(f"the peak of {estimate.device.name} is not in the table: set hardware.peak_tflops to see hours")
    if estimate.sampling is not None and estimate.sampling.hours is None:
        found.append(
            f"how fast {estimate.device.name} reads its memory is not in the table, so the hours of sampling are not "
            "known: they come on top of the others, and every step tells its seconds as perf/sampling_s"
        )
    return found


def _too_big(estimate: Estimate, need: float, room: float) -> str:
    line = f"the chosen batch needs about {_gb(need)}, {estimate.device.name} has {_gb(room)}: "
    if estimate.rows_that_fit:
        return line + f"set hardware.micro_batch_tokens={estimate.rows_that_fit * estimate.batch.length}"
    if not estimate.memory.checkpointing:
        return line + "set hardware.activation_checkpointing=true"
    return line + "shard it over more devices (hardware.strategy=fsdp)"


def _sheet(title: str, *columns: str) -> Table:
    sheet = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        sheet.add_column(column, justify="left" if index == 0 else "right")
    return sheet


def _facts(title: str) -> Table:
    """A table of names and values without column heads."""
    sheet = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    sheet.show_header = False
    return sheet


def _model(e: Estimate) -> Table:
    sheet, most = _facts("Model and batch"), " at most" if e.sampling else ""
    share = f" ({e.active / 1e6:,.2f} M active)" if e.active != e.parameters else ""
    sheet.add_row("parameters", f"{e.parameters / 1e6:,.2f} M{share}")
    if e.trained != e.parameters:
        sheet.add_row("  trained beside them, of the adapter", f"{e.trained / 1e6:,.2f} M")
    sheet.add_row("  of these embedding and head", f"{e.embedding / 1e6:,.2f} M")
    sheet.add_row(f"FLOPs a token at {e.batch.length:,}", f"{e.flops_per_token / 1e9:,.3f} GFLOP")
    rows = e.batch.tokens // e.batch.length
    sheet.add_row(f"tokens a step{most}", f"{e.batch.tokens:,} = {rows:,} sequences x {e.batch.length:,}")
    sheet.add_row(
        "micro-batches a step",
        f"{e.micro_batches:,} x {e.batch.micro_rows:,} sequences, on {e.world_size:,} device{'s' * (e.world_size > 1)}",
    )
    sheet.add_row("steps", f"{e.steps:,}")
    sheet.add_row(f"tokens{most}", f"{e.tokens:,}")
    return sheet


def _time(e: Estimate) -> Table:
    what = "Time of the updates" if e.sampling else "Time"
    sheet = _sheet(
        f"{what} on {e.world_size:,} x {e.device.name} ({e.device.precision})", "share of peak", "tokens/s", "time"
    )
    if e.hours is None or e.device.peak_flops is None:
        sheet.add_row("unknown", "", "")
        return sheet
    for share, hours in e.hours.items():
        sheet.add_row(
            f"{share:.0%} of {_flops(e.device.peak_flops)}", f"{e.tokens / (hours * 3600):,.0f}", _hours(hours)
        )
    return sheet


def _sampling(one: SamplingPlan) -> Table:
    sheet = _facts("Sampling")
    sheet.add_row("prompts a step", f"{one.prompts:,}")
    each = f" = {one.prompts:,} x {one.samples // one.prompts:,}" if one.samples % one.prompts == 0 else ""
    sheet.add_row("samples a step", f"{one.samples:,}{each}")
    sheet.add_row("samples", f"{one.total:,}")
    sheet.add_row("tokens of a sample at most", f"{one.tokens:,}")
    sheet.add_row("decoded at a time (stage.slots)", f"{one.rows:,}, keys and values {_gb(one.cache)}")
    for share, hours in (one.hours or {}).items():
        sheet.add_row(f"time at {share:.0%} of {one.bandwidth:g} TB/s", f"{_hours(hours)}, besides that of the updates")
    return sheet


def phases(line: Timeline) -> Table:
    """The phases of a run: of each, what it changes; - where that is the stage's own."""
    sheet = _sheet("Phases", "from step", "steps", "rows", "samples", "positions", *CHANGES)
    for phase, steps in line.steps_by_segment():
        values = (phase.rate, phase.temperature, phase.kl_coefficient, phase.rope_theta)
        sheet.add_row(
            *(f"{number:,}" for number in (phase.step, steps, phase.rows, phase.samples, phase.row_length)),
            *("-" if value is None else f"{value:g}" for value in values),
        )
    return sheet


def _sources(e: Estimate) -> Table:
    sheet = _sheet("Data", "source", "domain", "share", e.unit, "it holds", "epochs", "at most")
    for source in e.sources:
        sheet.add_row(
            source.name,
            source.domain,
            f"{source.share:.1%}",
            f"{source.tokens:,.0f}",
            "unknown" if source.available is None else f"{source.available:,.0f}",
            "unknown" if source.epochs is None else f"{source.epochs:,.2f}",
            "any" if source.max_epochs is None else f"{source.max_epochs:g}",
            style="yellow" if source.too_often else "",
        )
    return sheet


def _memory(e: Estimate) -> Table:
    memory = e.memory
    sheet = _sheet(f"Memory of one device{', sharded' if e.sharded else ''}", "", "GB")
    sheet.add_row("weights (fp32)", _number(memory.weights))
    sheet.add_row("gradients (fp32)", _number(memory.gradients))
    sheet.add_row("optimizer state (fp32)", _number(memory.optimizer))
    if memory.kept_copies:
        sheet.add_row("copies of weights that the stage keeps", _number(memory.kept_copies))
    if memory.frozen:
        sheet.add_row("frozen weights (reference, teacher, judges)", _number(memory.frozen))
    sheet.add_row("copies of weights to compute with", _number(memory.compute_copies))
    used = {True: memory.checkpointed, False: memory.activations}
    sheet.add_row(
        f"activations, {e.batch.micro_rows:,} sequences{_switch(memory.checkpointing)}",
        _number(used[memory.checkpointing]),
    )
    sheet.add_row("logits of one chunk", _number(memory.logits))
    if memory.cache:
        sheet.add_row("or, before these, keys and values of samples", _number(memory.cache))
    sheet.add_row("workspace (guess)", _number(memory.workspace), end_section=True)
    room = f" of {e.device.memory / GB:,.0f}" if e.device.memory is not None else ""
    sheet.add_row("total", _number(memory.total) + room, style="bold")
    other = not memory.checkpointing
    sheet.add_row(f"activations would be{_switch(other)}", _number(used[other]), style="dim")
    if e.rows_that_fit is not None:
        sheet.add_row("sequences a micro-batch that fit", f"{e.rows_that_fit:,}", style="dim")
    return sheet


def _switch(checkpointing: bool) -> str:
    return " with checkpointing" if checkpointing else " without checkpointing"


def _disk(e: Estimate) -> Table:
    disk = e.disk
    sheet = _facts("Disk")
    rate = f"at {CHECKPOINT_BYTES_PER_S / GB:g} GB/s, a guess"
    sheet.add_row("one checkpoint", f"{_gb(disk.checkpoint)}, about {disk.seconds:,.1f} s in the background ({rate})")
    sheet.add_row("checkpoints written in all", f"{disk.per_run:,}" if disk.per_run else "only at the end")
    sheet.add_row("kept at one time", f"{disk.kept:,} (last, best, milestones)")
    sheet.add_row("exported model", _gb(disk.export))
    free = "" if e.free_disk is None else f" of {_gb(e.free_disk)} free"
    sheet.add_row("total at most", _gb(disk.total) + free)
    return sheet


def _number(size: float) -> str:
    return f"{size / GB:,.2f}"


def _gb(size: float) -> str:
    return f"{size / GB:,.2f} GB" if size < 100 * GB else f"{size / GB:,.0f} GB"


def _flops(rate: float) -> str:
    return f"{rate / 1e12:,.0f} TFLOP/s" if rate >= 10e12 else f"{rate / 1e12:,.3f} TFLOP/s"


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"
