"""DeepSeek-V2: latent attention, experts in groups beside plain shared ones (arXiv 2405.04434)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.model.family import ExpertSwitches, Family, Switches
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
from lifecycle.model.sizes import ModelSizes

METHODS = ("greedy", "group_limited_greedy")


def keys(config: ModelSizes) -> dict[str, Any]:
    """Keys of its config.json."""
    method = METHODS[0] if config.moe is None or config.moe.groups == 1 else METHODS[1]
    return {"mlp_bias": False, **latent_keys(config), **routed_keys(config, method=method)}


def read(full: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `keys`."""
    moe = read_routed(full, score="softmax", grouped=full.get("topk_method") == METHODS[1])
    return {"moe": moe, "latent": read_latent(full)}


FAMILY = Family(
    architecture="DeepseekV2ForCausalLM",
    switches=Switches(
        whole_heads=True,
        latent=True,
        experts=ExpertSwitches(score="softmax", normalise=False, shared="plain", groups=True, scale=True),
    ),
    keys=keys,
    read=read,
    tensors=NORMS | LATENT | DENSE | EXPERTS,
    only=PLAIN | {"norm_topk_prob": False},  # their class does not divide, whatever this key says
    methods=METHODS,
    predicts_further=True,
)
