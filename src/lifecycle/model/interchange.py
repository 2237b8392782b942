"""What several architectures of `transformers` share: names of tensors inside a block, keys of a config.json.

Each table is ours -> theirs. A `*` stands for the number of an expert: ours are stacked in one tensor, a folder holds
one tensor for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.model.parts import Latent, MoE, Score
from lifecycle.model.sizes import ModelSizes

# -- tensors inside a block

NORMS = {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
ATTENTION = {
    f"attention.{name}": f"self_attn.{name}"
    for name in (
        *(f"{matrix}_proj.weight" for matrix in "qkvo"),
        *(f"{matrix}_proj.bias" for matrix in "qkv"),
        *(f"{matrix}_norm.weight" for matrix in "qk"),
    )
}
LATENT = {
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.q_down.weight": "self_attn.q_a_proj.weight",
    "attention.q_norm.weight": "self_attn.q_a_layernorm.weight",
    "attention.q_up.weight": "self_attn.q_b_proj.weight",
    "attention.kv_down.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attention.kv_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attention.kv_up.weight": "self_attn.kv_b_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
}
MATRICES = ("gate_proj", "up_proj", "down_proj")
DENSE = {f"ffn.{matrix}.weight": f"mlp.{matrix}.weight" for matrix in MATRICES}
EXPERTS = {
    "ffn.router.weight": "mlp.gate.weight",
    "ffn.router.bias": "mlp.gate.e_score_correction_bias",
    **{f"ffn.experts.{matrix}": f"mlp.experts.*.{matrix}.weight" for matrix in MATRICES},
    **{f"ffn.shared.{matrix}.weight": f"mlp.shared_experts.{matrix}.weight" for matrix in MATRICES},
}
BLOCK = NORMS | ATTENTION | DENSE
"""Of most architectures."""

# -- keys

PLAIN = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "moe_layer_freq": 1,
    "per_layer_config": None,
}
"""Those that change a network, and the only values that ours has."""

NOISE = ("attention_dropout", "router_jitter_noise")
"""Those that change how a network is trained and not what it computes; ours is trained without."""

OURS, OURS_KEYS = "lifecycle", ("bias_rate", "balance")
"""Fields of `MoE` for training alone, which no key of `transformers` holds; a later stage trains with the same."""

LATENT_KEYS = {
    "q_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank",
    "nope_dim": "qk_nope_head_dim",
    "rope_dim": "qk_rope_head_dim",
    "v_dim": "v_head_dim",
}
ROUTED_KEYS = {
    "experts": "n_routed_experts",
    "active": "num_experts_per_tok",
    "ffn_width": "moe_intermediate_size",
    "shared": "n_shared_experts",
    "first_dense": "first_k_dense_replace",
    "normalise": "norm_topk_prob",
    "scale": "routed_scaling_factor",
    "groups": "n_group",
    "active_groups": "topk_group",
}
QWEN_KEYS = {
    "experts": "num_experts",
    "active": "num_experts_per_tok",
    "ffn_width": "moe_intermediate_size",
    "normalise": "norm_topk_prob",
}


def window_keys(config: ModelSizes) -> dict[str, Any]:
    """Keys of Qwen's attention: whether there is a sliding window, and its width in keys."""
    return {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window}


def window_from_keys(config: ModelSizes) -> dict[str, Any]:
    """The same, and the first block with the window: `max_window_layers`."""
    slides = config.sliding_window is not None
    return window_keys(config) | {"max_window_layers": config.sliding_from if slides else config.layers}


def latent_keys(config: ModelSizes) -> dict[str, Any]:
    """Keys of DeepSeek's latent attention."""
    return {"attention_bias": False, **{theirs: getattr(config.latent, ours) for ours, theirs in LATENT_KEYS.items()}}


def read_latent(full: Mapping[str, Any]) -> Latent:
    """The inverse of `latent_keys`."""
    return Latent(**{ours: full[theirs] for ours, theirs in LATENT_KEYS.items()})


def routed_keys(config: ModelSizes, *, method: str) -> dict[str, Any]:
    """Keys of experts, as DeepSeek names them. A model without experts says that they begin after its last block.

    method: how experts are chosen; the class implies it, but vLLM, llama.cpp's converter and DeepSeek's own code read
    the key.
    """
    if config.moe is None:
        return {"first_k_dense_replace": config.layers}
    sizes = {theirs: getattr(config.moe, ours) for ours, theirs in ROUTED_KEYS.items()}
    return sizes | {"scoring_func": config.moe.score, "moe_layer_freq": 1, "topk_method": method}


def read_routed(full: Mapping[str, Any], *, score: Score, grouped: bool = True) -> MoE | None:
    """The inverse of `routed_keys`; None for a dense model. grouped: experts are chosen within the best groups."""
    if full["first_k_dense_replace"] >= full["num_hidden_layers"]:
        return None
    sizes = {ours: full[theirs] for ours, theirs in ROUTED_KEYS.items()}
    sizes |= {key: 1 for key in ("groups", "active_groups") if sizes[key] is None or not grouped}
    return MoE(**sizes, score=score, **training_of(full))


def qwen_keys(moe: MoE | None) -> dict[str, Any]:
    """Keys of experts, as Qwen names them."""
    assert moe is not None  # these families always have them
    sizes = {theirs: getattr(moe, ours) for ours, theirs in QWEN_KEYS.items()}
    return sizes | {"decoder_sparse_step": 1, "mlp_only_layers": list(range(moe.first_dense))}


def read_qwen(full: Mapping[str, Any], **shared: Any) -> MoE:
    """The inverse of `qwen_keys`; `shared`: fields of `MoE` for the shared experts. The class of `transformers` may
    hold the number of experts under another name than the files do."""
    known = {"num_experts": full.get("num_local_experts"), **full}
    sizes = {ours: known[theirs] for ours, theirs in QWEN_KEYS.items()}
    return MoE(**sizes, first_dense=len(full.get("mlp_only_layers") or []), **shared, **training_of(full))


def training_of(full: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `MoE` for training alone, from a folder that this project exported; empty for others."""
    ours = full.get(OURS) or {}
    return {key: ours[key] for key in OURS_KEYS if key in ours}
