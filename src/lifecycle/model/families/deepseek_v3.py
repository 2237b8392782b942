"""DeepSeek-V3: latent attention, sigmoid scores, loads evened by a bias (arXiv 2412.19437)."""

from __future__ import annotations

from typing import Any

from lifecycle.model.family import V3, Family, Switches
from lifecycle.model.interchange import (
    DENSE,
    EXPERTS,
    LATENT,
    NORMS,
    latent_keys,
    read_latent,
    read_routed,
    routed_keys,
)
from lifecycle.model.sizes import ModelSizes


def keys(config: ModelSizes) -> dict[str, Any]:
    """Keys of its config.json."""
    further = {"num_nextn_predict_layers": 0} if config.moe else {}
    return {"rope_interleave": True, **latent_keys(config), **routed_keys(config, method="noaux_tc"), **further}


FAMILY = Family(
    architecture="DeepseekV3ForCausalLM",
    switches=Switches(latent=True, experts=V3),
    keys=keys,
    read=lambda full: {"moe": read_routed(full, score="sigmoid"), "latent": read_latent(full)},
    tensors=NORMS | LATENT | DENSE | EXPERTS,
    methods=("noaux_tc",),
    predicts_further=True,
)
