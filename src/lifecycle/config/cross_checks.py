"""Faults between the groups of a config: values that are each right and cannot stand together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def faults_between(plain: Mapping[str, Any], *, guard_actions: Collection[str]) -> list[str]:
    """Of a whole config in plain values; `guard_actions`: those that its stage can take."""
    nodes = {key: value for key, value in plain.items() if isinstance(value, Mapping)}
    actions = nodes.get("guard", {}).get("actions")
    return [
        *(_guard(actions, guard_actions) if isinstance(actions, list) else []),
        *_ewc(nodes.get("stage", {}), nodes.get("hardware", {})),
    ]


def _guard(actions: list[Any], able: Collection[str]) -> list[str]:
    """A guard that is to do what the stage cannot."""
    faults = []
    if unable := [str(action) for action in actions if action not in able]:
        takes = ", ".join(sorted(able)) or "none"
        faults.append(
            f"guard.actions has {', '.join(unable)}, which this stage cannot take (it takes {takes}): type "
            f"guard.actions=[{','.join(a for a in actions if a in able)}]"
        )
    return faults


def _ewc(stage: Mapping[str, Any], hardware: Mapping[str, Any]) -> list[str]:
    if stage.get("ewc") is None or hardware.get("strategy") != "fsdp":
        return []
    return [
        "stage.ewc keeps two more copies of the whole weights on every device, and hardware.strategy=fsdp is for "
        "models that do not fit there: type stage.ewc=null, or hardware.strategy=ddp"
    ]
