"""The command that a config was composed from: typed words, choices of every group, folder of the run.

Hydra keeps that in globals of the process. Here it is stored in the config itself, under the key `command`, so that a
run needs nothing but its config, and two runs in one process do not mix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from lifecycle.errors import UserError

KEY = "command"


@dataclass(frozen=True, kw_only=True)
class Command:
    """The command that a config was composed by, for what no value of the config says.

    typed: its words, without Hydra's flags. choices: of every group. folder: of the run. files: folders with the config
    files that it came from. shares_process: whether other jobs of a sweep run in the same process.
    """

    folder: str
    typed: tuple[str, ...] = ()
    choices: Mapping[str, str | None]
    files: tuple[str, ...] = ()
    shares_process: bool = False

    def names(self, *beginnings: str) -> list[str]:
        """The typed words that begin so, as `model=`, with or without a plus."""
        return [word for word in self.typed if word.lstrip("+").startswith(beginnings)]


def command_of(cfg: DictConfig) -> Command:
    """The command of `cfg`; without typed words or choices for one that was not composed here (config.yaml of a
    run)."""
    if KEY not in cfg:
        return Command(folder=str((Path("outputs") / str(cfg.run)).resolve()), choices={})
    told: Any = OmegaConf.to_container(cfg[KEY], resolve=True)
    return Command(
        folder=told["folder"],
        typed=tuple(told["typed"]),
        choices=told["choices"],
        files=tuple(told["files"]),
        shares_process=told["shares_process"],
    )


def say_command(cfg: DictConfig, folder: Path, settings: HydraConf) -> None:
    """Store Hydra's record of the command (`settings`) in `cfg`. Raises UserError where the key `command` was typed."""
    if KEY in cfg:
        raise UserError(f"{KEY} is said by the command itself: leave it out")
    typed: Any = OmegaConf.to_container(settings.overrides.task)  # as they are: a word may refer to what is not there
    sources = (Path(source.path) for source in settings.runtime.config_sources if source.schema == "file")
    shared = settings.mode == RunMode.MULTIRUN and not str(settings.launcher._target_).endswith("SlurmLauncher")
    made = Command(
        folder=str(folder),
        typed=tuple(str(word).removeprefix("++") for word in typed),
        choices={str(group): choice for group, choice in settings.runtime.choices.items()},
        files=tuple(map(str, sources)),
        shares_process=shared,
    )
    with open_dict(cfg):
        cfg[KEY] = literal(asdict(made))


def literal(value: Any) -> Any:
    """Plain values such that OmegaConf reads them back as they are: `${...}` in text from elsewhere refers to nothing,
    and no variable of this machine's environment gets into it."""
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
