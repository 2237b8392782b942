"""A run's folder `outputs/<run>`: the resolved config, and `run.json` with the run's status and lineage.

The folder's name is stable (a name or job id, never the clock), so a restarted job finds its own checkpoints.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from lifecycle.system import atomic
from lifecycle.system.foreign import read_mapping, read_object, want_mappings

PACKAGES = ("torch", "lightning", "hydra-core", "datasets", "transformers", "tokenizers", "numpy")

LINEAGE = (
    "parent",
    "teacher",
    "data",
    "data.config",
    "data.config.sources",
    "data.config.sources.*",
    "data.config.decontaminate",
)
CONFIG = ("model", "data", "data.sources", "data.sources.*", "stage", "hardware")
"""Keys that must be mappings in the files of a parent, which may be untrusted."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run and its `run.json`."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def progress(self) -> Path:
        """How far a job has come that goes on after a kill."""
        return self.path / "progress.json"

    def lineage(self) -> dict[str, Any]:
        """The content of `run.json`, or an empty mapping for a new run. Errors: `UserError` for what is no lineage."""
        path = self.path / "run.json"
        found = read_object(path) if path.exists() else {}
        want_mappings(found, LINEAGE, path)
        return found

    def config(self) -> dict[str, Any] | None:
        """The resolved config that the run was started with, or None for a new run. Errors: `UserError`."""
        path = self.path / "config.yaml"
        found = read_mapping(path) if path.exists() else None
        want_mappings(found or {}, CONFIG, path)
        return found

    def write_config(self, resolved: Mapping[str, Any]) -> None:
        """Store the resolved config as plain YAML."""
        atomic.write(self.path / "config.yaml", yaml.safe_dump(dict(resolved), sort_keys=False))

    def update(self, **entries: Any) -> None:
        """Merge entries into `run.json`, written whole or not at all."""
        atomic.write(self.path / "run.json", json.dumps(self.lineage() | entries, indent=1))


def origin() -> dict[str, Any]:
    """Versions, git commit and machine, for the lineage."""
    return {"versions": _versions(), "git": _git(), "started": time.time()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("lifecycle", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return found


def _git() -> dict[str, Any] | None:
    """Commit and cleanliness of the code's checkout, or None outside one, and where there is no git to ask."""
    here = Path(__file__).parents[1]
    if not (here.parents[1] / ".git").exists() or shutil.which("git") is None:
        return None
    commit = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True)
    dirty = subprocess.run(["git", "-C", str(here), "status", "--porcelain"], capture_output=True, text=True)
    return {"commit": commit.stdout.strip() or None, "dirty": bool(dirty.stdout.strip())}
