"""Qwen2 with experts: beside a shared one behind a gate (Qwen1.5-MoE, arXiv 2407.10671)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.model.family import ExpertSwitches, Family, Switches
from lifecycle.model.interchange import BLOCK, EXPERTS, MATRICES, PLAIN, qwen_keys, read_qwen
from lifecycle.model.sizes import ModelSizes


def keys(config: ModelSizes) -> dict[str, Any]:
    """Keys of its config.json."""
    assert config.moe is not None
    shared = {"shared_expert_intermediate_size": config.moe.shared_width} if config.moe.shared else {}
    return {"qkv_bias": config.qkv_bias, "use_sliding_window": False, **qwen_keys(config.moe), **shared}


def read(full: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `keys`."""
    width = full["shared_expert_intermediate_size"]
    moe = read_qwen(full, shared=1, shared_ffn_width=width, shared_gate=True)
    return {"qkv_bias": bool(full.get("qkv_bias", False)), "moe": moe}


FAMILY = Family(
    architecture="Qwen2MoeForCausalLM",
    switches=Switches(qkv_bias=None, experts=ExpertSwitches(score="softmax", shared="gated"), dense=False),
    keys=keys,
    read=read,
    tensors=BLOCK
    | EXPERTS
    | {f"ffn.shared.{matrix}.weight": f"mlp.shared_expert.{matrix}.weight" for matrix in MATRICES}
    | {"ffn.shared_gate.weight": "mlp.shared_expert_gate.weight"},
    only=PLAIN | {"use_sliding_window": False},  # every second block slides, which no checkpoint uses
)
