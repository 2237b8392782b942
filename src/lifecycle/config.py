"""The configuration: where it stands, how it is composed and checked, and the only calls that build objects from it.

    compose (Hydra) -> check (all faults at once) -> build (constructors, by `_target_`)

YAML holds the values, signatures hold the types; `RunConfig` is the signature of the root. Nothing here is built before
`check` has passed.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lifecycle import usage
from lifecycle.errors import UserError
from lifecycle.length import Limits
from lifecycle.signature import Place, Walk, dotted

Task = Callable[[DictConfig], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When a run is saved and what is kept."""

    every_steps: int
    keep_last: int
    milestones: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """When a run is measured on held-out text, and on how many tokens a domain."""

    every_steps: int | None
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """How often metrics are read from the device."""

    every_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """The form of the model that a run hands over."""

    dtype: Literal["fp32", "bf16", "fp16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The root of every config; each key is explained in conf/config.yaml."""

    run: str
    seed: int
    init_from: str | None
    resume: str
    dry_run: bool
    deterministic: bool
    adapter: str | None
    checkpoint: Checkpoint
    validation: Validation
    logging: Logging
    export: Export
    model: dict[str, Any]
    data: dict[str, Any]
    stage: dict[str, Any]
    hardware: dict[str, Any]
    logger: dict[str, Any]
    callbacks: dict[str, Any]


GROUPS = ("model", "data", "stage", "hardware", "logger", "callbacks")
"""Root keys that a `_target_` stands under."""

SUPPLIED: dict[str, tuple[str, ...]] = {
    "data": (
        "view",
        "seed",
        "sequence_length",
        "global_batch_tokens",
        "micro_batch_tokens",
        "validation_tokens",
        "workers",
        "folder",
    ),
    "stage": ("model", "setup", "data", "folder"),
    "logger": ("folder",),
    "callbacks": ("folder",),
}
"""Arguments that the run passes to a group's constructor itself."""

LIMITS = tuple(field.name for field in dataclasses.fields(Limits))
JOB_ASIDE = ("view", "optimizer")
"""Keys of a job's `stage` that its function does not take: the optimizer is composed for every stage."""

MAY_DIFFER = (
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
)
"""Keys that a resumed run may change: its end, where it runs, and what is written about it."""


# -- composing


def conf_dir() -> Path:
    """The config folder: in the installed package, else at the top of the checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def hydra_main(task: Task) -> int:
    """Compose the config from the command line and run `task` on it, or on each config of a sweep (`-m`).

    Returns the exit code: 0, or 2 where the user's config or data is at fault (the message is on stderr). SystemExit
    and crashes go through. Without arguments it prints the help page.
    """
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(usage.page(conf_dir()), end="")
        return 0
    _register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing its own trace; we say it in plain words
    inside: list[bool] = []
    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_watched(task, inside))
    try:
        sys.argv[1:] = _forced(_named(words), conf_dir(), *_user_folders(words))
        main()
    except UserError as error:
        print(f"lifecycle: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        if inside:  # our own fault, not the command line's
            raise
        print(f"lifecycle: {usage.complaint(error)}", file=sys.stderr)
        return 2
    return 0


def compose(overrides: Sequence[str] = (), *, config_dirs: Sequence[Path] = ()) -> DictConfig:
    """The config of a command line, for use from Python. Raises UserError where it cannot be composed."""
    _register_resolvers()
    forced = _forced(overrides, conf_dir(), *config_dirs)
    forced.append(f"hydra.searchpath={[str(folder.resolve()) for folder in config_dirs]}")
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            cfg = hydra.compose("config", forced, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise UserError(usage.complaint(error)) from error
    HydraConfig.instance().set_config(cfg)
    cfg.run = cfg.run  # its default refers to Hydra's node, which goes
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg


def overrides() -> list[str]:
    """What the user typed for this run, without the flags of Hydra."""
    return [word.removeprefix("++") for word in HydraConfig.get().overrides.task]


def _register_resolvers() -> None:
    OmegaConf.register_new_resolver("flat", lambda *parts: "-".join(parts).replace("/", "_"), replace=True)


def _named(words: list[str]) -> list[str]:
    """A sweep gets its name here: its jobs are composed one by one, and by their own choices would not agree on it."""
    if not {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words) or any(
        re.match(r"\+*run=", word) for word in words
    ):
        return words
    typed = [word for word in words if "=" in word and not word.startswith(("-", "hydra."))]
    try:
        single = [o.input_line for o in OverridesParser.create().parse_overrides(typed) if not o.is_sweep_override()]
    except OverrideParseException as error:
        raise UserError(usage.complaint(error)) from error
    return [*words, f"run={compose([line for line in single if line], config_dirs=_user_folders(words)).run}"]


def _user_folders(words: Sequence[str]) -> list[Path]:
    """Folders of the user's own groups (`--config-dir F`, `--config-dir=F`, `-cd F`)."""
    flags = [i for i, word in enumerate(words[:-1]) if word in ("--config-dir", "-cd")]
    return [Path(words[i + 1]) for i in flags] + [
        Path(word.partition("=")[2]) for word in words if word.startswith("--config-dir=")
    ]


def _forced(words: Sequence[str], *folders: Path) -> list[str]:
    """Let every `key=value` reach `check`, which knows all keys, also optional ones, and the nearest spelling.

    Hydra by itself stops at the first key that no YAML file names. `++` sets a key whether or not it is there.
    """
    groups = usage.group_names(*folders)
    plain = re.compile(r"[A-Za-z_][\w.-]*=")
    return [
        f"++{word}" if plain.match(word) and not word.startswith((*(f"{g}=" for g in groups), "hydra.")) else word
        for word in words
    ]


def _watched(task: Task, inside: list[bool]) -> Task:
    """`task`, leaving no empty run folder behind; `inside` is not empty while the task runs, and after it has failed."""

    def run(cfg: DictConfig) -> None:
        settings = HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        if settings.mode == RunMode.MULTIRUN:
            print(f"job {settings.job.num}: {' '.join(overrides())} -> {os.path.relpath(folder)}", file=sys.stderr)
        inside.append(True)
        try:
            task(cfg)
            inside.clear()
        except UserError as error:
            if settings.mode == RunMode.MULTIRUN:
                raise  # also from another process; the launcher hands it on
            print(f"lifecycle: {error}", file=sys.stderr)
            raise SystemExit(2) from error
        finally:
            while folder.is_dir() and folder != Path.cwd() and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent

    return run


# -- checking


def check(cfg: DictConfig) -> None:
    """Compare the config with `RunConfig` and every constructor that it names. Raises UserError that lists all faults.

    Numbers that were written in another form (2e9 for a whole number) are put right in `cfg`.
    """
    walk = Walk()
    plain = _resolve(cfg, (), walk)
    walk.known = list(_flat(plain))
    walk.arguments(RunConfig, {key: {} if key in GROUPS and isinstance(v, dict) else v for key, v in plain.items()}, ())
    if plain.get("adapter") is not None:
        walk.faults.append("adapter is set, but no stage here takes one: type adapter=null")
    for group in GROUPS:
        if isinstance(plain.get(group), Mapping):
            _check_group(group, plain[group], walk)
    if walk.faults:
        lines = "\n".join(f"  - {fault}" for fault in dict.fromkeys(walk.faults))
        count = f"{len(set(walk.faults))} faults" if len(set(walk.faults)) > 1 else "1 fault"
        raise UserError(f"{count} in the configuration; nothing was started:\n{lines}")
    for place, value in walk.changed.items():
        node = cfg
        for part in place[:-1]:
            node = node[int(part)] if isinstance(node, ListConfig) else node[part]
        node[int(place[-1]) if isinstance(node, ListConfig) else place[-1]] = value
    _refuse_processes_in_sweep(cfg)


def _check_group(group: str, node: Mapping[str, Any], walk: Walk) -> None:
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
    if isinstance(target, type) and dataclasses.is_dataclass(target):
        walk.construct(target, node, (group,))
    else:
        parameters = inspect.signature(target).parameters
        supplied = [name for name in SUPPLIED.get(group, ()) if name in parameters]
        walk.arguments(target, node, (group,), supplied=supplied, aside=aside)


def _resolve(cfg: DictConfig, at: Place, walk: Walk) -> dict[str, Any]:
    """Plain values of a node; what is missing (`???`) or refers to nothing is a fault."""
    plain: dict[str, Any] = {}
    for key in cfg:
        place = (*at, str(key))
        if OmegaConf.is_missing(cfg, key):
            comment = usage.comment_beside(_files_of(place), place if len(place) == 1 else place[1:])
            walk.faults.append(
                f"{dotted(place)} has no value yet{f' ({comment})' if comment else ''}: type {dotted(place)}=..."
            )
            continue
        try:
            value = cfg[key]
            container = isinstance(value, ListConfig)
            plain[str(key)] = (
                _resolve(value, place, walk)
                if isinstance(value, DictConfig)
                else OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
                if container
                else value
            )
        except OmegaConfBaseException as error:
            walk.faults.append(f"{dotted(place)} cannot be resolved: {str(error).splitlines()[0]}")
    return plain


def _files_of(place: Place) -> list[Path]:
    """YAML files that may hold the key: the group's choice, in every config folder."""
    if not HydraConfig.initialized():
        return []
    runtime = HydraConfig.get().runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    name = f"{place[0]}/{runtime.choices.get(place[0])}.yaml" if len(place) > 1 else "config.yaml"
    return [folder / name for folder in folders if (folder / name).is_file()]


def _refuse_processes_in_sweep(cfg: DictConfig) -> None:
    """Jobs of a sweep share this process, and processes started for its devices would start the whole sweep again."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    hardware = build(cfg.hardware)
    count = hardware.devices_per_node() * hardware.num_nodes
    if count > 1 and not str(HydraConfig.get().launcher._target_).endswith("SlurmLauncher"):
        raise UserError(
            f"a sweep (-m) runs its jobs in one process, but hardware.devices and num_nodes ask for {count}. Type "
            "hardware.devices=1, or one command a job (for seed in 1 2; do lifecycle ... seed=$seed run=name-$seed; done), "
            "or on a cluster hydra/launcher=submitit_slurm (pip install hydra-submitit-launcher)"
        )


# -- building


def is_job(cfg: DictConfig) -> bool:
    """Whether the stage is a plain function, run without a Trainer."""
    return not inspect.isclass(_locate(cfg.stage._target_))


def build(node: DictConfig, *, without: type | Collection[str] = (), **supplied: Any) -> Any:
    """Call the node's `_target_` with the node's values (plain containers, annotated dataclasses) and `supplied`.

    `without`: keys that others read, by name or as the fields of a dataclass. Raises UserError for what does not fit.
    """
    plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    aside = [field.name for field in dataclasses.fields(without)] if isinstance(without, type) else without
    target = _locate(plain["_target_"])
    walk = Walk()
    arguments = walk.arguments(target, plain, (), supplied=tuple(supplied), aside=aside)
    if walk.faults:
        raise UserError(f"{plain['_target_']}: " + "; ".join(walk.faults))
    return target(**arguments, **supplied)


def arguments(node: DictConfig) -> dict[str, Any]:
    """The values of a data node as its constructor would get them, for what must know them without building it."""
    plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return Walk().arguments(_locate(plain["_target_"]), plain, (), supplied=SUPPLIED["data"])


def build_limits(stage: DictConfig) -> Limits:
    """The part of `stage` that says how long the run is."""
    limits: Limits = build(OmegaConf.create({"_target_": "lifecycle.length.Limits", **{k: stage[k] for k in LIMITS}}))
    return limits


def build_loggers(node: DictConfig, *, folder: Path) -> list[Any]:
    """The loggers beside metrics.csv, if any were chosen."""
    return list(build(node, folder=folder))


def _locate(target: str) -> Callable[..., Any]:
    walk = Walk()
    found = walk.locate(target, ())
    if found is None:
        raise UserError("; ".join(walk.faults))
    return found


# -- comparing


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The whole config as plain values that YAML can write."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted keys that differ, without those that a resumed run may change (`MAY_DIFFER`)."""
    before, after = _flat(old), _flat(new)
    nothing = object()
    differ = [key for key in {**before, **after} if before.get(key, nothing) != after.get(key, nothing)]
    return [key for key in differ if not f"{key}.".startswith(tuple(f"{allowed}." for allowed in MAY_DIFFER))]


def _flat(node: Mapping[str, Any], at: Place = ()) -> dict[str, Any]:
    """Leaves by dotted key; a list is a leaf, and so is an empty mapping."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        place = (*at, str(key))
        leaves |= _flat(value, place) if isinstance(value, Mapping) and value else {dotted(place): value}
    return leaves
