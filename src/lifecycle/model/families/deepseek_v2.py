"""DeepSeek-V2: latent attention, experts in groups beside plain shared ones (arXiv 2405.04434)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lifecycle.model.family import Family, Routing, Switches
from lifecycle.model.interchange import (
    DENSE,
    EXPERTS,
    LATENT,
    NORMS,
    PLAIN,
    latent_keys,
    read_latent,
    read_routed,
    routed_keys,
)

if TYPE_CHECKING:
    from lifecycle.model.config import ModelConfig

METHODS = ("greedy", "group_limited_greedy")


def keys(config: ModelConfig) -> dict[str, Any]:
    """Their words."""
    method = METHODS[0] if config.moe is None or config.moe.groups == 1 else METHODS[1]
    return {"mlp_bias": False, **latent_keys(config), **routed_keys(config, method=method)}


def read(full: Mapping[str, Any]) -> dict[str, Any]:
    """The other way."""
    moe = read_routed(full, score="softmax", grouped=full.get("topk_method") == METHODS[1])
    return {"moe": moe, "latent": read_latent(full)}


FAMILY = Family(
    architecture="DeepseekV2ForCausalLM",
    switches=Switches(
        whole_heads=True,
        latent=True,
        experts=Routing(score="softmax", normalise=False, shared="plain", groups=True, scale=True),
    ),
    keys=keys,
    read=read,
    tensors=NORMS | LATENT | DENSE | EXPERTS,
    only=PLAIN | {"norm_topk_prob": False},  # their class does not divide, whatever this key says
    methods=METHODS,
    predicts_further=True,
)
