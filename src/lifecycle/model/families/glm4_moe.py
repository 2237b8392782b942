"""GLM-4.5: grouped queries, partial rotary positions, experts as in DeepSeek-V3 (arXiv 2508.06471)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.model.family import V3, Family, Switches
from lifecycle.model.interchange import BLOCK, EXPERTS, PLAIN, read_routed, routed_keys
from lifecycle.model.sizes import ModelSizes


def keys(config: ModelSizes) -> dict[str, Any]:
    """Keys of its config.json."""
    further = {"num_nextn_predict_layers": 0} if config.moe else {}
    attention = {"attention_bias": config.qkv_bias, "use_qk_norm": config.qk_norm}
    return attention | routed_keys(config, method="noaux_tc") | further


def read(full: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `keys`."""
    switches = {"qkv_bias": bool(full.get("attention_bias", False)), "qk_norm": bool(full.get("use_qk_norm", False))}
    return {**switches, "moe": read_routed(full, score="sigmoid")}


FAMILY = Family(
    architecture="Glm4MoeForCausalLM",
    switches=Switches(qkv_bias=None, qk_norm=None, partial_rotary=True, experts=V3, score_head=False),
    keys=keys,
    read=read,
    tensors=BLOCK | EXPERTS,
    only={key: value for key, value in PLAIN.items() if key != "attention_bias"},
    methods=("noaux_tc",),
    predicts_further=True,
)
