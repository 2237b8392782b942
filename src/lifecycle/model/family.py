"""Families: the switches of each architecture of `transformers`, and the keys of its config.json for them.

A family is the `model_type` that a model exports to, and one file in families/, found by its name. What it holds
decides what can be built (config.py), what config.json says and means, and what the tensors of a folder are called; so
every model that is built can be exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lifecycle.model.interchange import BLOCK, PLAIN
from lifecycle.model.parts import Score
from lifecycle.model.sizes import ModelSizes


@dataclass(frozen=True, kw_only=True)
class ExpertSwitches:
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
    can also do without. score_head: `transformers` has a class for it that ends in a score."""

    qkv_bias: bool | None = False
    qk_norm: bool | None = False
    sliding: Literal["never", "all", "from"] = "never"
    partial_rotary: bool = False
    whole_heads: bool = False
    latent: bool = False
    experts: ExpertSwitches | None = None
    dense: bool = True
    score_head: bool = True


V3 = ExpertSwitches(score="sigmoid", shared="plain", groups=True, scale=True, bias=True)
"""The experts of DeepSeek-V3, which others took over."""


SCORING = "ForSequenceClassification"
"""How the classes of `transformers` that end in a score are called, behind the name of the family."""


def _nothing(full: Mapping[str, Any]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture.

    architecture: the class in `transformers` that predicts tokens. keys: what its config.json says of a model beside
    what all say. read: the inverse of `keys`: fields of `ModelSizes` from a config.json with the defaults of the class
    filled in. tensors: inside a block, our names and those of the folder. only: keys that change the network, and the
    one value of each that is built here. beside: keys that are read though they are no fields of the class. methods:
    its ways of choosing experts that are built here. predicts_further: files may hold blocks after the last, which are
    not read.
    """

    architecture: str
    switches: Switches
    keys: Callable[[ModelSizes], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = _nothing
    tensors: Mapping[str, str] = field(default_factory=lambda: BLOCK)
    only: Mapping[str, Any] = field(default_factory=lambda: PLAIN)
    beside: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    predicts_further: bool = False

    def ending(self, *, score_head: bool) -> str:
        """The class in `transformers` of a model that predicts tokens, or ends in a score."""
        return self.architecture.replace("ForCausalLM", SCORING) if score_head else self.architecture
