"""The value of a key in the config files, before anything was typed: error messages give it as an example."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lifecycle.config.composed import Command

Default = Callable[[str], Any]


def defaults(command: Command) -> Default:
    """The value of a dotted key by the files of the run's choices; None where they have none, or it refers to another.

    They are composed at the first call, a second time and without the values of the command line. Hydra's public
    `compose` works on globals of the process, which `hydra.main` holds while a config is checked and which threads
    share; so this uses the loader beneath it, whose names are internal to Hydra (pinned to 1.3 in pyproject.toml).
    """

    @functools.cache
    def composed() -> DictConfig:
        places = ConfigSearchPathImpl()
        for provider, place in (("hydra", "pkg://hydra.conf"), *(("main", f"file://{one}") for one in command.files)):
            places.append(provider, place)
        places.append("schema", "structured://")  # Hydra's own node
        choices = [word for word in command.typed if word.partition("=")[0] in command.choices]
        return ConfigLoaderImpl(places).load_configuration("config", choices, run_mode=RunMode.RUN)

    def default(key: str) -> Any:
        node: Any = composed() if command.files else None
        for name in key.split("."):
            if not isinstance(node, DictConfig) or name not in node or OmegaConf.is_interpolation(node, name):
                return None
            node = node[name]
        return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node

    return default
