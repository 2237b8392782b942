"""The check of a config before anything is built: every fault of keys, types and combinations in one error.

    compose (Hydra) -> check (all faults at once) -> build (constructors, by `_target_`)

YAML holds the values, signatures hold the types; `RunConfig` is the signature of the root.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lifecycle.config import help
from lifecycle.config.build import JOB_ASIDE, SUPPLIED, build, field_names, parts_of
from lifecycle.config.compare import flat
from lifecycle.config.composed import KEY, Command, command_of
from lifecycle.config.cross_checks import Declared, faults_between
from lifecycle.config.defaults import defaults
from lifecycle.config.schema import RunConfig
from lifecycle.config.signature import KeyPath, Walk, dotted
from lifecycle.errors import UserError

GROUPS = ("model", "data", "stage", "adapter", "hardware", "logger", "callbacks")
"""Root keys that a `_target_` stands under."""


def check(cfg: DictConfig) -> None:
    """Compare the config with `RunConfig` and every constructor that it names. Raises UserError that lists all faults.

    Numbers that were written in another form (2e9 for a whole number) are converted in `cfg`.
    """
    command = command_of(cfg)
    walk = Walk(default=defaults(command))
    plain = _resolve(cfg, (), walk, command)
    plain.pop(KEY, None)
    walk.known = list(flat(plain))
    unread = [f"{fault.split()[0]} is missing;" for fault in walk.faults]  # of no value yet: said once
    walk.arguments(RunConfig, {key: {} if key in GROUPS and isinstance(v, dict) else v for key, v in plain.items()}, ())
    for group in GROUPS:
        if isinstance(plain.get(group), Mapping):
            _check_group(group, plain[group], walk, [Path(folder) for folder in command.files])
    refused = {fault.split()[0] for fault in walk.faults}  # what is no value of its key is compared with no other
    for place, value in walk.changed.items():
        _put(plain, place, value)
    between = faults_between(_without(plain, refused), _declared(plain.get("stage"), walk))
    walk.faults += [fault for fault in between if fault.split()[0] not in refused]
    faults = [fault for fault in dict.fromkeys(walk.faults) if not fault.startswith(tuple(unread))]
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        raise UserError(f"{count} in the configuration; nothing was started:\n{lines}")
    for place, value in walk.changed.items():
        _put(cfg, place, value)
    _refuse_processes_in_sweep(cfg, command)


def _put(node: Any, place: KeyPath, value: Any) -> None:
    """Set the value at a place of nested mappings and lists."""
    for part in place[:-1]:
        node = node[int(part)] if isinstance(node, ListConfig | list) else node[part]
    node[int(place[-1]) if isinstance(node, ListConfig | list) else place[-1]] = value


def _without(node: Mapping[str, Any], keys: Collection[str], at: str = "") -> dict[str, Any]:
    """A config without the values of some dotted keys."""
    return {
        key: _without(value, keys, f"{at}{key}.") if isinstance(value, Mapping) else value
        for key, value in node.items()
        if f"{at}{key}" not in keys or isinstance(value, Mapping)
    }


def _check_group(group: str, node: Mapping[str, Any], walk: Walk, folders: Sequence[Path]) -> None:
    if not node and group == "logger":
        return  # logger=csv: every run writes that one anyway
    if "_target_" not in node:
        keys, known = " and ".join(f"{group}.{key}" for key in node), help.choices(group, *folders)
        said = (
            f"{keys} {'are' if len(node) > 1 else 'is'} set, but no choice is made that has it"
            if node
            else f"{group}._target_ is missing"
        )
        walk.faults.append(f"{said}: type {group}=CHOICE too, of {', '.join(known)}" if known else said)
        return
    target = walk.locate(node["_target_"], (group,))
    if target is None:
        return
    aside: tuple[str, ...] = ()
    if group == "stage":
        aside = tuple(name for part in parts_of(target) for name in field_names(part)) or JOB_ASIDE
        for part in parts_of(target):
            walk.construct(part, {key: node[key] for key in field_names(part) if key in node}, (group,))
        if not inspect.isclass(target) and "view" not in node:
            walk.faults.append("stage.view is missing; a job says what it reads: type stage.view=text")
    if isinstance(target, type) and dataclasses.is_dataclass(target):
        walk.construct(target, node, (group,))
    else:
        parameters = inspect.signature(target).parameters
        supplied = [name for name in SUPPLIED.get(group, ()) if name in parameters]
        walk.arguments(target, node, (group,), supplied=supplied, aside=aside)


def _declared(stage: Any, walk: Walk) -> Declared:
    """What the class of a stage declares; empty for a job."""
    found = walk.locate(stage["_target_"], ("stage",)) if isinstance(stage, Mapping) and "_target_" in stage else None
    target: Any = found if inspect.isclass(found) else None
    if target is None:
        return Declared()
    keys = {name for part in parts_of(target) for name in field_names(part)}
    return Declared(
        views=target.views,
        guard_actions=target.guard_actions,
        weight_copies=target.weight_copies,
        faults=target.faults,
        keys=frozenset(keys),
        trains=True,
        fp8=target.fp8,
    )


def _resolve(cfg: DictConfig, at: KeyPath, walk: Walk, command: Command) -> dict[str, Any]:
    """Plain values of a node; what is missing (`???`) or refers to nothing is a fault."""
    plain: dict[str, Any] = {}
    for key in cfg:
        place = (*at, str(key))
        if OmegaConf.is_missing(cfg, key):
            comment = help.comment_beside(help.files_of(place, command), place if len(place) == 1 else place[1:])
            walk.faults.append(
                f"{dotted(place)} has no value yet{f' ({comment})' if comment else ''}: type {dotted(place)}=..."
            )
            continue
        try:
            value = cfg[key]
            if isinstance(value, DictConfig):
                value = _resolve(value, place, walk, command)
            elif isinstance(value, ListConfig):
                value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            plain[str(key)] = value
        except OmegaConfBaseException as error:
            walk.faults.append(f"{dotted(place)} cannot be resolved: {str(error).splitlines()[0]}")
    return plain


def _refuse_processes_in_sweep(cfg: DictConfig, command: Command) -> None:
    """Jobs of a sweep share this process, and processes started for its devices would start the whole sweep again."""
    if not command.shares_process:
        return
    hardware = build(cfg.hardware)
    count = hardware.world_size()
    if count > 1:
        raise UserError(
            f"a sweep (-m) runs its jobs in one process, but hardware.devices and num_nodes ask for {count}. Type "
            "hardware.devices=1, or one command a job (for s in 1 2; do lifecycle ... seed=$s run=name-$s; done), or "
            "on a cluster hydra/launcher=submitit_slurm (pip install hydra-submitit-launcher)"
        )
