"""Mixtral: mistral, and experts in every block (arXiv 2401.04088)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.model.family import ExpertSwitches, Family, Switches
from lifecycle.model.interchange import BLOCK, training_of
from lifecycle.model.parts import MoE
from lifecycle.model.sizes import ModelSizes


def keys(config: ModelSizes) -> dict[str, Any]:
    """Keys of its config.json: the experts' width stands where others have that of a dense block."""
    assert config.moe is not None
    sizes = {"num_local_experts": config.moe.experts, "num_experts_per_tok": config.moe.active}
    return sizes | {"intermediate_size": config.moe.ffn_width, "sliding_window": config.sliding_window}


def read(full: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `keys`."""
    sizes = {"experts": full["num_local_experts"], "active": full["num_experts_per_tok"]}
    return {"moe": MoE(**sizes, ffn_width=full["intermediate_size"], **training_of(full))}


FAMILY = Family(
    architecture="MixtralForCausalLM",
    switches=Switches(
        sliding="all", experts=ExpertSwitches(score="softmax", normalise=True, dense_first=False), dense=False
    ),
    keys=keys,
    read=read,
    tensors=BLOCK
    | {
        "ffn.router.weight": "block_sparse_moe.gate.weight",
        "ffn.experts.gate_proj": "block_sparse_moe.experts.*.w1.weight",
        "ffn.experts.up_proj": "block_sparse_moe.experts.*.w3.weight",
        "ffn.experts.down_proj": "block_sparse_moe.experts.*.w2.weight",
    },
)
