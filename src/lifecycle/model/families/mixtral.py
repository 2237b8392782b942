"""Mixtral: mistral, and experts in every block (arXiv 2401.04088)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lifecycle.model.family import Family, Routing, Switches
from lifecycle.model.interchange import BLOCK, training_of
from lifecycle.model.parts import MoE

if TYPE_CHECKING:
    from lifecycle.model.config import ModelConfig


def keys(config: ModelConfig) -> dict[str, Any]:
    """The experts' width stands where others have that of a dense block."""
    assert config.moe is not None
    sizes = {"num_local_experts": config.moe.experts, "num_experts_per_tok": config.moe.active}
    return sizes | {"intermediate_size": config.moe.ffn_width, "sliding_window": config.sliding_window}


def read(full: Mapping[str, Any]) -> dict[str, Any]:
    """The other way."""
    sizes = {"experts": full["num_local_experts"], "active": full["num_experts_per_tok"]}
    return {"moe": MoE(**sizes, ffn_width=full["intermediate_size"], **training_of(full))}


FAMILY = Family(
    architecture="MixtralForCausalLM",
    switches=Switches(sliding="all", experts=Routing(score="softmax", normalise=True, dense_first=False), dense=False),
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
