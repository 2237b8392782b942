"""Faults between the groups of a config: values that are each valid, but not together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What the class of a stage declares.

    views: those that it trains on; none for any. guard_actions: those that a forgetting guard may take. weight_copies:
    by key of `stage` that may be null, how many copies of the whole weights every device keeps where it is set. faults:
    of values that it cannot work with together. keys: of `stage`, that the run reads for it. trains: no
    job. fp8: whether it may multiply in fp8.
    """

    views: frozenset[str] = frozenset()
    guard_actions: frozenset[str] = frozenset()
    weight_copies: Mapping[str, int] = field(default_factory=dict)
    faults: Callable[[Mapping[str, Any]], list[str]] = lambda plain: []
    keys: frozenset[str] = frozenset()
    trains: bool = False
    fp8: bool = False


def faults_between(plain: Mapping[str, Any], declared: Declared) -> list[str]:
    """All faults of a whole config in plain values, a line each."""
    nodes = {key: value for key, value in plain.items() if isinstance(value, Mapping)}
    actions = nodes.get("guard", {}).get("actions")
    own = declared.faults(plain)
    said = any(line.startswith("stage.view is ") for line in own)  # by the stage, which knows the loss too
    return [
        *([] if said else _view(nodes.get("stage", {}), declared)),
        *(_guard(actions, declared) if isinstance(actions, list) else []),
        *_copies(nodes.get("stage", {}), nodes.get("hardware", {}), declared),
        *_rate(nodes.get("stage", {}), declared),
        *own,
        *(_adapter(nodes, declared) if "_target_" in nodes.get("adapter", {}) else []),
        *(_fp8(nodes, declared) if nodes.get("hardware", {}).get("fp8") is not None else []),
    ]


def _view(stage: Mapping[str, Any], declared: Declared) -> list[str]:
    """A view that the stage cannot train on."""
    view = stage.get("view")
    if not declared.views or not isinstance(view, str) or view in declared.views:
        return []
    return [
        f"stage.view is '{view}', and this stage trains on {' or '.join(sorted(declared.views))}: type "
        f"stage.view={sorted(declared.views)[-1]}, or choose another stage"
    ]


def _guard(actions: list[Any], declared: Declared) -> list[str]:
    """Actions of the guard that the stage does not support."""
    able = declared.guard_actions
    unable = [str(action) for action in actions if action not in able]
    if not unable:
        return []
    takes = ", ".join(sorted(able)) or "none"
    return [
        f"guard.actions has {', '.join(unable)}, which this stage cannot take (it takes {takes}): type "
        f"guard.actions=[{','.join(a for a in actions if a in able)}]"
    ]


def _copies(stage: Mapping[str, Any], hardware: Mapping[str, Any], declared: Declared) -> list[str]:
    """Whole copies of weights that are sharded because they do not fit."""
    if hardware.get("strategy") != "fsdp":
        return []
    return [
        f"stage.{key} keeps {number} more copies of the whole weights on every device, and hardware.strategy=fsdp is "
        f"for models that do not fit there: type stage.{key}=null, or hardware.strategy=ddp"
        for key, number in declared.weight_copies.items()
        if stage.get(key) is not None
    ]


def _rate(stage: Mapping[str, Any], declared: Declared) -> list[str]:
    """No learning rate in a stage that does not inherit one from its parent."""
    optimizer = stage.get("optimizer")
    if not declared.keys or "peak_ratio" in declared.keys:
        return []
    if not isinstance(optimizer, Mapping) or optimizer.get("lr", 0) is not None:
        return []
    return [
        "stage.optimizer.lr is null, which means a share of the parent's rate, and this stage takes none over: type "
        "stage.optimizer.lr=1e-3"
    ]


def _adapter(nodes: Mapping[str, Mapping[str, Any]], declared: Declared) -> list[str]:
    """What an adapter cannot be trained with: it sits beside the weights of a parent, which stay as they are."""
    if not declared.trains:
        return ["adapter is chosen, and this stage is a job, which trains nothing: type adapter=none"]
    faults, stage = [], nodes.get("stage", {})
    if nodes["adapter"].get("bits") is not None and nodes.get("hardware", {}).get("strategy") == "fsdp":
        faults.append("adapter.bits makes weights small that hardware.strategy=fsdp would cut: type adapter=lora")
    optimizer = stage.get("optimizer")
    if isinstance(optimizer, Mapping) and str(optimizer.get("_target_")).endswith(".Muon"):
        faults.append("stage.optimizer is Muon, whose rates are none for an adapter: type optimizer=adamw")
    if stage.get("optimizer_state") == "parent":
        faults.append(
            "stage.optimizer_state is parent, and the parent's moments are of its weights, not of an adapter: type "
            "stage.optimizer_state=fresh"
        )
    if any(isinstance(line, Mapping) and line.get("rope_theta") for line in stage.get("phases") or []):
        faults.append("stage.phases has rope_theta, which changes the frozen model: leave it out, or adapter=none")
    if stage.get("new_tokens") or stage.get("split_digits"):
        faults.append(
            "stage.new_tokens and stage.split_digits add rows to the embedding, which an adapter leaves as it is: type "
            "stage.new_tokens=[] stage.split_digits=false (a parent that has such tokens keeps them), or adapter=none"
        )
    return faults


def _fp8(nodes: Mapping[str, Mapping[str, Any]], declared: Declared) -> list[str]:
    """What cannot be multiplied in fp8, on any machine."""
    hardware, stage = nodes["hardware"], nodes.get("stage", {})
    given, off, found = f"hardware.fp8 is {hardware['fp8']}", "type hardware.fp8=null", []
    if not declared.trains:
        return [f"{given}, and this stage is a job, which trains nothing: {off}"]
    if not declared.fp8:
        found.append(
            f"{given}, and this stage trains in bf16, in which samplers and references say what it is compared with "
            f"(docs/gpu.md): {off}"
        )
    if "_target_" in nodes.get("adapter", {}):
        found.append(f"{given}, and layers with an adapter multiply in bf16: {off}, or adapter=none")
    if hardware.get("accelerator") == "cpu":
        found.append(f"{given}, and a CPU has no units for it: {off}, or choose hardware=h100 or another GPU")
    if hardware.get("precision") == "fp32":
        found.append(f"{given}, and hardware.precision is fp32: {off}, or hardware.precision=bf16")
    if hardware.get("compile") is False:
        found.append(f"{given}, which without compilation is slower than bf16: {off}, or hardware.compile=true")
    lengths = {"stage.sequence_length": stage.get("sequence_length")} | {
        f"stage.phases[{n}].sequence_length": line.get("sequence_length")
        for n, line in enumerate(stage.get("phases") or [])
        if isinstance(line, Mapping)
    }
    found += [
        f"{given}, which takes 16 positions at a time, and rows are of {length}: round {key} to {-(-length // 16) * 16}"
        for key, length in lengths.items()
        if isinstance(length, int) and length % 16
    ]
    return found
