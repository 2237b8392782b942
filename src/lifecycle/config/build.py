"""The only calls that build objects from a config, by the `_target_` of its nodes. Nothing is built before `check` has
passed (`checking.py`)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig

from lifecycle.config.compare import plain
from lifecycle.config.signature import KeyPath, Walk
from lifecycle.duration import Limits
from lifecycle.errors import UserError

Part = TypeVar("Part")

OF_STAGE = (
    "model setup data folder tokenizer parent_view parent_ends parent_folder parent_sha256 seed deterministic compiled"
)
SUPPLIED: dict[str, tuple[str, ...]] = {
    "stage": tuple(OF_STAGE.split()),
    "logger": ("folder",),
    "callbacks": ("folder",),
}
"""Arguments that the run passes to a group's constructor itself: to a stage `model` and `setup`; to a job what it names
as a parameter (`runs/job.py`)."""

JOB_ASIDE = ("view", "optimizer")
"""Keys of a job's `stage` that its function does not take: the optimizer is composed for every stage."""


def is_job(stage: DictConfig) -> bool:
    """Whether the stage is a plain function, run without a Trainer."""
    return not inspect.isclass(_locate(stage))


def asked_of_run(stage: DictConfig) -> frozenset[str]:
    """The parameters of a stage or a job that the run supplies, by name."""
    return frozenset(inspect.signature(_locate(stage)).parameters) & frozenset(SUPPLIED["stage"])


def reads_data(stage: DictConfig) -> bool:
    """Whether the run opens the data of the config: every training does, and a job with a parameter `data`."""
    return not is_job(stage) or "data" in asked_of_run(stage)


def stage_class(stage: DictConfig) -> Any:
    """The class of a stage, with what it declares (see `Stage`); None for a job."""
    found = _locate(stage)
    return found if inspect.isclass(found) else None


def parts_of(target: Any) -> tuple[type, ...]:
    """The dataclasses whose fields are keys of `stage` that the run reads, not the stage itself; none for a job."""
    stage: Any = target if inspect.isclass(target) else None
    return () if stage is None else (Limits, *stage.takes_over)


def field_names(part: type) -> tuple[str, ...]:
    """The names of a dataclass's fields."""
    return tuple(field.name for field in dataclasses.fields(part))


def part(stage: DictConfig, wanted: type[Part]) -> Part | None:
    """The keys of `stage` that are the fields of `wanted`; None where this stage does not have them."""
    if wanted not in parts_of(_locate(stage)):
        return None
    names = field_names(wanted)
    return wanted(**_read(wanted, stage, aside=[str(key) for key in stage if key not in names]))


def build_limits(stage: DictConfig) -> Limits:
    """The part of a stage that says how long the run is."""
    limits = part(stage, Limits)
    assert limits is not None, "a job has no length"
    return limits


def build(node: DictConfig, **supplied: Any) -> Any:
    """Call the `_target_` of a group's node with its values (plain containers, annotated dataclasses) and `supplied`.

    Raises UserError for what does not fit.
    """
    target = _locate(node)
    aside: Collection[str] = ()
    if _place(node) == ("stage",):
        aside = [name for one in parts_of(target) for name in field_names(one)] or JOB_ASIDE
    return target(**_read(target, node, supplied=tuple(supplied), aside=aside), **supplied)


def build_loggers(node: DictConfig, *, folder: Path) -> list[Any]:
    """The logger beside metrics.csv, if one was chosen."""
    return [build(node, folder=folder)] if "_target_" in node else []


def _locate(node: DictConfig) -> Callable[..., Any]:
    walk = Walk()
    found = walk.locate(node.get("_target_"), _place(node))
    if found is None:
        raise UserError("; ".join(walk.faults))
    return found


def _read(
    target: Callable[..., Any], node: DictConfig, *, supplied: Collection[str] = (), aside: Collection[str] = ()
) -> dict[str, Any]:
    walk = Walk()
    found = walk.arguments(target, plain(node), _place(node), supplied=supplied, aside=aside)
    if walk.faults:
        raise UserError("; ".join(walk.faults))
    return found


def _place(node: DictConfig) -> KeyPath:
    """The dotted path of a node in its config, which decides what its `_target_` may name."""
    return tuple(node._get_full_key("").split("."))
