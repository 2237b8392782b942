"""The section on what was used: recipe, machine, and the peak that speed is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from lifecycle.hardware.device_specs import FLOPS_CONVENTION
from lifecycle.report.page.format import rate, span
from lifecycle.report.page.render import Element, Heading, Paragraph, Sheet
from lifecycle.report.run.run_data import RunData


def used(run: RunData) -> list[Element]:
    """The recipe and the machine, and why the program chose what it chose."""
    rows = [(name, value) for name, value in (*_recipe(run), *_machine(run)) if value]
    if not rows:
        return []
    blocks: list[Element] = [Heading("What was used"), Sheet(("", ""), [list(row) for row in rows], numbers=False)]
    reasons = choice(run).get("reasons", ())
    if reasons:
        blocks.append(Paragraph("Chosen by the program: " + "; ".join(reasons) + ".", "note"))
    return blocks


def _recipe(run: RunData) -> list[tuple[str, str | None]]:
    model = run.setting("model") or {}
    layers = model.get("layers")
    shape = f"{layers} layers x {model.get('width')}, {model.get('heads')} heads" if layers else ""
    parameters = run.run.get("parameters")
    size = f", {parameters / 1e6:,.2f} M parameters" if parameters else ""
    optimizer = run.setting("stage.optimizer") or {}
    name = str(optimizer.get("_target_", "")).rsplit(".", 1)[-1]
    peak = f", peak rate {optimizer['lr']:g}" if isinstance(optimizer.get("lr"), int | float) else ""
    batch, length = run.setting("stage.global_batch_tokens"), run.setting("stage.sequence_length")
    schedule = run.setting("stage.schedule.name")
    return [
        ("stage", run.run.get("stage")),
        ("started from", _parent(run.run.get("parent"))),
        ("teacher", _parent(run.run.get("teacher"))),
        ("model", shape + size if shape else None),
        ("adapter", _adapter(run)),
        ("tokens a step", f"{batch:,} in rows of {length:,}" if batch and length else None),
        ("optimizer", name + peak + (f", {schedule} schedule" if schedule else "") if name else None),
        ("tokenizer", f"sha256 {digest[:12]}" if (digest := tokenizer_digest(run)) else None),
        ("seed", str(run.setting("seed")) if run.setting("seed") is not None else None),
    ]


def _adapter(run: RunData) -> str | None:
    told, ratio = run.run.get("adapter"), run.setting("adapter.lr_ratio")
    if not isinstance(told, Mapping):
        return None
    bits = f", beside weights of {told['bits']} bits" if told.get("bits") else ""
    return (
        f"rank {told.get('rank')} on {told.get('layers')} of {told.get('of')} linear layers, "
        f"{told.get('parameters', 0):,} trained parameters{bits}; {ratio:g} x the optimizer's rate"
    )


def tokenizer_digest(run: RunData) -> str:
    """Of the tokenizer that a run had; empty where it does not say."""
    value = run.run.get("tokenizer") or run.run.get("tokenizer_sha256") or ""
    return str(value.get("sha256", "") if isinstance(value, Mapping) else value)


def _parent(parent: Any) -> str | None:
    if not parent:
        return None
    return str(parent.get("path", "")) if isinstance(parent, Mapping) else str(parent)


def _machine(run: RunData) -> list[tuple[str, str | None]]:
    chosen, git = choice(run), run.run.get("git") or {}
    precision = chosen.get("precision") or run.setting("hardware.precision")
    compiled = chosen.get("compile", run.setting("hardware.compile"))
    memory, blocked = run.last("perf/memory_gb"), sum(v or 0.0 for v in run.metrics.get("perf/checkpoint_s", []))
    started, changed = run.run.get("started"), ", with changes" if git.get("dirty") else ""
    versions = run.run.get("versions") or {}
    return [
        ("device", run.run.get("device")),
        ("precision", f"{precision}, {'compiled' if compiled is True else 'not compiled'}" if precision else None),
        ("products of the blocks", f"fp8, {fp8}" if (fp8 := run.setting("hardware.fp8")) else None),
        ("peak memory", f"{memory:,.2f} GiB" if memory else None),
        ("blocked by checkpoints", span(blocked) if blocked else None),
        ("started", f"{datetime.fromtimestamp(started, UTC):%Y-%m-%d %H:%M} UTC" if started else None),
        ("code", f"`{git['commit'][:12]}`{changed}" if git.get("commit") else None),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or None),
    ]


def mfu_name(run: RunData) -> str:
    """MFU on an accelerator; on a CPU, whose maker states no usable peak, the share of what was measured."""
    return "share of measured peak" if "measured" in choice(run).get("peak_source", "") else "MFU"


def convention(run: RunData) -> str:
    """How that share was computed, and with which peak."""
    peak, source = choice(run).get("peak_flops"), choice(run).get("peak_source", "source not stated")
    of = f"{rate(peak)}; {source}" if peak else source
    return f"tokens per second x FLOPs a token, over the peak ({of}). {FLOPS_CONVENTION}."


def choice(run: RunData) -> Mapping[str, Any]:
    """What the program settled for the run's machine."""
    return run.run.get("choice") or {}
