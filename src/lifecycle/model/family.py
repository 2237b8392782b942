"""What a family is: the switches of an architecture of `transformers`, and how its files say them.

A family is the `model_type` that a model exports to, and one file in families/, found by its name. What it holds
decides what can be built (`family_faults`), what config.json says and means, and what the tensors of a folder are
called; so every model that is built can be exported.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lifecycle.model import families
from lifecycle.model.interchange import BLOCK, PLAIN
from lifecycle.model.parts import MoE, Score

if TYPE_CHECKING:  # config.py reads this module
    from lifecycle.model.config import ModelConfig

FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules(families.__path__)))
"""The names of all."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What an architecture's experts have: the value that a key of `moe` must have, or None where any will do."""

    score: Score
    normalise: bool | None = None
    shared: Literal["none", "gated", "plain"] = "none"
    dense_first: bool = True
    groups: bool = False
    scale: bool = False
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What an architecture has. qkv_bias, qk_norm: the value it must have, None: any. sliding: never, in every block
    or from some block on. whole_heads: width must be a multiple of heads. experts: None where it has none; `dense`: it
    can also do without."""

    qkv_bias: bool | None = False
    qk_norm: bool | None = False
    sliding: Literal["never", "all", "from"] = "never"
    partial_rotary: bool = False
    whole_heads: bool = False
    latent: bool = False
    experts: Routing | None = None
    dense: bool = True


V3 = Routing(score="sigmoid", shared="plain", groups=True, scale=True, bias=True)


def _nothing(full: Mapping[str, Any]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """architecture: their class. keys: what their config.json says of a model beside what all say; read: the fields of
    a `ModelConfig` that follow from a config.json with their defaults filled in. tensors: inside a block, our names and
    theirs. only: keys that change the network, and the only values that ours has; methods: theirs of choosing experts
    that are built. predicts_further: files may hold blocks after the last, which are not read."""

    architecture: str
    switches: Switches
    keys: Callable[[ModelConfig], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = _nothing
    tensors: Mapping[str, str] = field(default_factory=lambda: BLOCK)
    only: Mapping[str, Any] = field(default_factory=lambda: PLAIN)
    methods: tuple[str, ...] = ()
    predicts_further: bool = False


def family_of(name: str) -> Family:
    """The family of that name, one of `FAMILIES`."""
    found: Family = importlib.import_module(f"{families.__name__}.{name}").FAMILY
    return found


def family_faults(config: ModelConfig) -> list[str]:
    """Every switch of the model that its family's architecture does not have, with what to type."""
    family = family_of(config.family).switches
    faults = []
    for key, wanted in (("qkv_bias", family.qkv_bias), ("qk_norm", family.qk_norm)):
        value = getattr(config, key)
        if wanted is not None and value != wanted:
            faults.append(_misfit(config, key, value, wanted))
    if config.sliding_window is not None and family.sliding == "never":
        faults.append(_misfit(config, "sliding_window", config.sliding_window, None))
    elif config.sliding_from and family.sliding == "all":
        faults.append(_misfit(config, "sliding_from", config.sliding_from, 0))
    if config.rotary_share != 1 and not family.partial_rotary:
        faults.append(_misfit(config, "rotary_share", config.rotary_share, 1.0))
    if family.whole_heads and config.heads > 0 and config.width % config.heads:
        faults.append(
            f"model.width is {config.width}, but family {config.family} exports to an architecture where it is a "
            f"multiple of heads ({config.heads}); choose such a width or another family"
        )
    if family.latent != (config.latent is not None):
        faults.append(_presence(config, "latent", family.latent))
    if config.moe is None:
        return [*faults, _presence(config, "moe", True)] if not family.dense else faults
    if family.experts is None:
        return [*faults, _presence(config, "moe", False)]
    return faults + _routing_faults(config, config.moe, family.experts)


def _routing_faults(config: ModelConfig, moe: MoE, family: Routing) -> list[str]:
    wanted: dict[str, object] = {"score": family.score}
    if family.normalise is not None:
        wanted["normalise"] = family.normalise
    if not family.dense_first:
        wanted["first_dense"] = 0
    if not family.groups:
        wanted |= {"groups": 1}
    if not family.scale:
        wanted |= {"scale": 1.0}
    if not family.bias:
        wanted |= {"bias_rate": 0.0}
    wanted["shared_gate"] = family.shared == "gated"
    faults = [
        _misfit(config, f"moe.{key}", getattr(moe, key), value)
        for key, value in wanted.items()
        if getattr(moe, key) != value
    ]
    if family.shared == "none" and moe.shared:
        faults.append(_misfit(config, "moe.shared", moe.shared, 0))
    if family.shared != "none" and not moe.shared:
        faults.append(_misfit(config, "moe.shared", moe.shared, 1))
    if family.shared == "plain" and moe.shared_width != moe.shared * moe.ffn_width:
        faults.append(_misfit(config, "moe.shared_ffn_width", moe.shared_ffn_width, None))
    return faults


def _misfit(config: ModelConfig, key: str, value: object, wanted: object) -> str:
    return (
        f"model.{key} is {_typed(value)}, but family {config.family} exports to an architecture where it is "
        f"{_typed(wanted)}; set model.{key}={_typed(wanted)} or another family"
    )


def _presence(config: ModelConfig, key: str, needed: bool) -> str:
    verb = "always has" if needed else "does not have"
    remedy = f"give model.{key}" if needed else f"set model.{key}=null"
    return f"family {config.family} {verb} model.{key}; {remedy} or choose another family"


def _typed(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else str(value)
