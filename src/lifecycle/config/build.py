"""The configuration: its root, its check, and the only calls that build objects from it.

    compose (Hydra) -> check (all faults at once) -> build (constructors, by `_target_`)

YAML holds the values, signatures hold the types; `RunConfig` is the signature of the root. Nothing here is built before
`check` has passed.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lifecycle.config import help
from lifecycle.config.command import compose, conf_dir, hydra_main, literal, overrides
from lifecycle.config.cross_checks import faults_between
from lifecycle.config.defaults import defaults
from lifecycle.config.schema import RunConfig
from lifecycle.config.signature import KeyPath, Walk, dotted
from lifecycle.duration import Limits
from lifecycle.errors import UserError

__all__ = [
    "JOB_ASIDE",
    "RunConfig",
    "SUPPLIED",
    "build",
    "build_limits",
    "build_loggers",
    "changed_keys",
    "check",
    "compose",
    "conf_dir",
    "hydra_main",
    "is_job",
    "is_model_job",
    "literal",
    "needs",
    "overrides",
    "resolved",
    "starts_from_parent",
]

GROUPS = ("model", "data", "stage", "hardware", "logger", "callbacks")
"""Root keys that a `_target_` stands under."""

OF_STAGE = "model setup data folder tokenizer parent_view parent_ends parent_folder seed deterministic compiled"
SUPPLIED: dict[str, tuple[str, ...]] = {
    "stage": tuple(OF_STAGE.split()),
    "logger": ("folder",),
    "callbacks": ("folder",),
}
"""Arguments that the run passes to a group's constructor itself."""

LIMITS = tuple(field.name for field in dataclasses.fields(Limits))
JOB_ASIDE = ("view", "optimizer")
"""Keys of a job's `stage` that its function does not take: the optimizer is composed for every stage."""

MAY_DIFFER = (
    "data._target_",
    "run",
    "resume",
    "dry_run",
    "checkpoint",
    "logging",
    "logger",
    "callbacks",
    "hardware",
    "stage.max_steps",
    "stage.max_tokens",
    "stage.max_epochs",
    "stage.max_skipped",
    "stage.max_norm_ratio",
    "stage.schedule.stretch",
    "data.bad_rows",
    "data.exhausted",
    "data.sources.*.max_epochs",
)
"""Keys that a resumed run may change: its end, where it runs, what it bears, what is written about it, and the class
that reads a data config, of which there is one (older runs know it by another name)."""

PLACES = ("data.root", "data.prepared", "data.sources.*.path")
"""Where its data lies: that too, where its content is looked at (`data/read/begun.py`)."""


# -- checking


def check(cfg: DictConfig) -> None:
    """Compare the config with `RunConfig` and every constructor that it names. Raises UserError that lists all faults.

    Numbers that were written in another form (2e9 for a whole number) are put right in `cfg`.
    """
    walk = Walk(default=defaults())
    plain = _resolve(cfg, (), walk)
    walk.known = list(_flat(plain))
    unread = [f"{fault.split()[0]} is missing;" for fault in walk.faults]  # of no value yet: said once
    walk.arguments(RunConfig, {key: {} if key in GROUPS and isinstance(v, dict) else v for key, v in plain.items()}, ())
    if plain.get("adapter") is not None:
        walk.faults.append("adapter is set, but no stage here takes one: type adapter=null")
    for group in GROUPS:
        if isinstance(plain.get(group), Mapping):
            _check_group(group, plain[group], walk)
    walk.faults += faults_between(plain, guard_actions=_guard_actions(plain.get("stage"), walk))
    faults = [fault for fault in dict.fromkeys(walk.faults) if not fault.startswith(tuple(unread))]
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        raise UserError(f"{count} in the configuration; nothing was started:\n{lines}")
    for place, value in walk.changed.items():
        node = cfg
        for part in place[:-1]:
            node = node[int(part)] if isinstance(node, ListConfig) else node[part]
        node[int(place[-1]) if isinstance(node, ListConfig) else place[-1]] = value
    _refuse_processes_in_sweep(cfg)


def _check_group(group: str, node: Mapping[str, Any], walk: Walk) -> None:
    if not node and group == "logger":
        return  # logger=csv: every run writes that one anyway
    if "_target_" not in node:
        walk.faults.append(f"{group}._target_ is missing; choose one of the group's files: type {group}=CHOICE")
        return
    target = walk.locate(node["_target_"], (group,))
    if target is None:
        return
    aside: tuple[str, ...] = ()
    if group == "stage":
        aside = LIMITS if inspect.isclass(target) else JOB_ASIDE
        if inspect.isclass(target):
            walk.construct(Limits, {key: node[key] for key in LIMITS if key in node}, (group,))
        elif "view" not in node:
            walk.faults.append("stage.view is missing; a job says what it reads: type stage.view=text")
    if isinstance(target, type) and dataclasses.is_dataclass(target):
        walk.construct(target, node, (group,))
    else:
        parameters = inspect.signature(target).parameters
        supplied = [name for name in SUPPLIED.get(group, ()) if name in parameters]
        walk.arguments(target, node, (group,), supplied=supplied, aside=aside)


def _guard_actions(stage: Any, walk: Walk) -> frozenset[str]:
    """What a forgetting guard may do in a run of this stage; a job takes none."""
    if not isinstance(stage, Mapping) or "_target_" not in stage:
        return frozenset()
    able: frozenset[str] = getattr(walk.locate(stage["_target_"], ("stage",)), "guard_actions", frozenset())
    return able


def _resolve(cfg: DictConfig, at: KeyPath, walk: Walk) -> dict[str, Any]:
    """Plain values of a node; what is missing (`???`) or refers to nothing is a fault."""
    plain: dict[str, Any] = {}
    for key in cfg:
        place = (*at, str(key))
        if OmegaConf.is_missing(cfg, key):
            comment = help.comment_beside(help.files_of(place), place if len(place) == 1 else place[1:])
            walk.faults.append(
                f"{dotted(place)} has no value yet{f' ({comment})' if comment else ''}: type {dotted(place)}=..."
            )
            continue
        try:
            value = cfg[key]
            if isinstance(value, DictConfig):
                value = _resolve(value, place, walk)
            elif isinstance(value, ListConfig):
                value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            plain[str(key)] = value
        except OmegaConfBaseException as error:
            walk.faults.append(f"{dotted(place)} cannot be resolved: {str(error).splitlines()[0]}")
    return plain


def _refuse_processes_in_sweep(cfg: DictConfig) -> None:
    """Jobs of a sweep share this process, and processes started for its devices would start the whole sweep again."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    hardware = build(cfg.hardware)
    count = hardware.devices_per_node() * hardware.num_nodes
    if count > 1 and not str(HydraConfig.get().launcher._target_).endswith("SlurmLauncher"):
        raise UserError(
            f"a sweep (-m) runs its jobs in one process, but hardware.devices and num_nodes ask for {count}. Type "
            "hardware.devices=1, or one command a job (for s in 1 2; do lifecycle ... seed=$s run=name-$s; done), or "
            "on a cluster hydra/launcher=submitit_slurm (pip install hydra-submitit-launcher)"
        )


# -- building


def is_job(cfg: DictConfig) -> bool:
    """Whether the stage is a plain function, run without a Trainer."""
    return not inspect.isclass(_locate(cfg.stage))


def is_model_job(cfg: DictConfig) -> bool:
    """Whether the stage is a job that asks for a model."""
    return is_job(cfg) and "model" in needs(cfg.stage)


def starts_from_parent(stage: DictConfig) -> bool:
    """Whether the stage goes on from a model and cannot begin without one."""
    return bool(getattr(_locate(stage), "starts_from_parent", False))


def needs(stage: DictConfig) -> set[str]:
    """What a stage or a job asks of the run, by the names of its parameters."""
    return set(inspect.signature(_locate(stage)).parameters) & set(SUPPLIED["stage"])


def build(node: DictConfig, *, without: type | Collection[str] = (), **supplied: Any) -> Any:
    """Call the `_target_` of a group's node with its values (plain containers, annotated dataclasses) and `supplied`.

    `without`: keys that others read, by name or as the fields of a dataclass. Raises UserError for what does not fit.
    """
    aside = [field.name for field in dataclasses.fields(without)] if isinstance(without, type) else without
    target = _locate(node)
    return target(**_read(target, node, supplied=tuple(supplied), aside=aside), **supplied)


def build_limits(stage: DictConfig) -> Limits:
    """The part of `stage` that says how long the run is."""
    others = [str(key) for key in stage if key not in LIMITS]
    return Limits(**_read(Limits, stage, aside=others))


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
    found = walk.arguments(target, _plain(node), _place(node), supplied=supplied, aside=aside)
    if walk.faults:
        raise UserError("; ".join(walk.faults))
    return found


def _place(node: DictConfig) -> KeyPath:
    """Where the node stands in its config: it says what may be named there."""
    return tuple(node._get_full_key("").split("."))


# -- comparing


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The whole config as plain values that YAML can write."""
    return {key: value for key, value in _plain(cfg).items() if key != "hydra"}


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], *, moved: bool = False) -> list[str]:
    """Dotted keys that differ, without those that a resumed run may change (`MAY_DIFFER`); `moved`: nor `PLACES`."""
    free = MAY_DIFFER + (PLACES if moved else ())
    before, after = _flat(old), _flat(new)
    # An absent key and null are the same: a key that a later version adds must not keep older runs from going on.
    differ = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    differ = [key for key in differ if not any(other.startswith(f"{key}.") for other in differ)]  # {} became {a: 1}
    return [key for key in differ if not any(fnmatchcase(f"{key}.", f"{allowed}.*") for allowed in free)]


def _plain(node: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _flat(node: Mapping[str, Any], at: KeyPath = ()) -> dict[str, Any]:
    """Leaves by dotted key; a list is a leaf, and so is an empty mapping."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        place = (*at, str(key))
        leaves |= _flat(value, place) if isinstance(value, Mapping) and value else {dotted(place): value}
    return leaves
