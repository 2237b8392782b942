"""A config in plain values, and the keys that differ between two of them: whether a run can be resumed with another."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lifecycle.config.composed import KEY
from lifecycle.config.signature import KeyPath, dotted

MAY_DIFFER = (
    "data._target_",
    "run",
    "resume",
    "dry_run",
    "checkpoint",
    "logging",
    "validation.answers",
    "validation.answer_tokens",
    "validation.samples",
    "logger",
    "callbacks",
    "hardware",
    "stage.max_steps",
    "stage.max_tokens",
    "stage.max_epochs",
    "stage.max_skipped",
    "stage.max_norm_ratio",
    "stage.schedule.stretch",
    "stage.preflight",
    "stage.keep_rollouts",
    "stage.judge.url",
    "stage.judge.key_from",
    "stage.judge.in_flight",
    "stage.judge.timeout_s",
    "stage.judge.attempts",
    "stage.judge.longest_wait_s",
    "stage.judge.price_in",
    "stage.judge.price_out",
    "stage.judge.max_cost",
    "data.bad_rows",
    "data.exhausted",
    "data.sources.*.max_epochs",
)
"""Keys that a resumed run may change: its end, where it runs, what it bears, what is written about it, and the class
that reads a data config, of which there is one (older runs know it by another name)."""

PLACES = ("data.root", "data.prepared", "data.sources.*.path")
"""Where its data lies: that too, where its content is looked at (`data/read/begun.py`)."""


LATER = {"data.chat_template": "auto", "data.long_examples": "drop", "data.sources.*.tie_margin": 0.0}
"""Keys that runs of older versions do not have, with the value under which a run is what it was without them."""


OTHER_DEFAULTS = {"data.sources.*.format": ("text", "auto")}
"""Keys whose default has changed, with (that of older versions, that of now): a run that has the older one goes on
under the newer. What rows become by it is compared too, by the fingerprints of `data/read/begun.py`."""


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The whole config as plain values that YAML can write, without how it was composed."""
    return {key: value for key, value in plain(cfg).items() if key not in ("hydra", KEY)}


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], *, moved: bool = False) -> list[str]:
    """Dotted keys that differ, without those that a resumed run may change (`MAY_DIFFER`); `moved`: nor `PLACES`."""
    free = MAY_DIFFER + (PLACES if moved else ())
    before, after = _comparable(old), _comparable(new)
    # An absent key and null are the same: a key that a later version adds must not keep older runs from going on.
    differ = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    differ = [key for key in differ if not any(other.startswith(f"{key}.") for other in differ)]  # {} became {a: 1}
    differ = [key for key in differ if key in before or not _was_so(key, after[key])]
    differ = [key for key in differ if not _is_default_of_now(key, before.get(key), after.get(key))]
    return [key for key in differ if not any(fnmatchcase(f"{key}.", f"{allowed}.*") for allowed in free)]


def _comparable(node: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by dotted key, classes by their own names: a module may have moved since."""
    return {
        key: str(value).rpartition(".")[2] if key.endswith("._target_") else value for key, value in flat(node).items()
    }


def _was_so(key: str, value: Any) -> bool:
    """Whether a run without the key was one with this value of it."""
    return any(fnmatchcase(key, later) and value == known for later, known in LATER.items())


def _is_default_of_now(key: str, before: Any, after: Any) -> bool:
    """Whether the key had the default of older versions and has that of now."""
    return any(fnmatchcase(key, known) and (before, after) == pair for known, pair in OTHER_DEFAULTS.items())


def plain(node: DictConfig) -> dict[str, Any]:
    """The values of a node."""
    values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def flat(node: Mapping[str, Any], at: KeyPath = ()) -> dict[str, Any]:
    """Leaves by dotted key; a list is a leaf, and so is an empty mapping."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        place = (*at, str(key))
        leaves |= flat(value, place) if isinstance(value, Mapping) and value else {dotted(place): value}
    return leaves
