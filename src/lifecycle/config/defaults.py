"""What the config files say of a key: its value where nothing was typed for it, as an example of what it takes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

Default = Callable[[str], Any]


def defaults() -> Default:
    """The value of a dotted key by the files of the run's choices; None where they have none, or it refers to another.

    They are composed at the first call, once more and without the values of the command line.
    """

    @functools.cache
    def composed() -> DictConfig:
        settings = HydraConfig.get()
        places = ConfigSearchPathImpl()
        for source in settings.runtime.config_sources:
            places.append(source.provider, f"{source.schema}://{source.path}")
        choices = [word for word in settings.overrides.task if re.match(r"[\w/@-]+=", word)]
        loader = ConfigLoaderImpl(places)
        return loader.load_configuration(settings.job.config_name, choices, run_mode=RunMode.RUN)

    def default(key: str) -> Any:
        node: Any = composed() if HydraConfig.initialized() else None
        for name in key.split("."):
            if not isinstance(node, DictConfig) or name not in node or OmegaConf.is_interpolation(node, name):
                return None
            node = node[name]
        return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node

    return default
