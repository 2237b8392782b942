"""What several architectures of `transformers` share: names of tensors inside a block, keys of a config.json.

Each table is ours -> theirs. A `*` stands for the number of an expert: ours are stacked in one tensor, a folder holds
one tensor for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lifecycle.model.parts import Latent, MoE, Score

if TYPE_CHECKING:  # config.py reads the families
    from lifecycle.model.config import ModelConfig

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
}
"""Those that change a network, and the only values that ours has."""

NOISE = ("attention_dropout", "router_jitter_noise")
"""Those that change how a network is trained and not what it computes; ours is trained without."""

OURS, OURS_KEYS = "lifecycle", ("bias_rate", "balance")
"""Training only, so their configs have no word for it; kept that a later stage goes on in the same way."""

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


def window_keys(config: ModelConfig) -> dict[str, Any]:
    """Of Qwen: a window that is there or not."""
    return {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window}


def window_from_keys(config: ModelConfig) -> dict[str, Any]:
    """Of Qwen: from which block on it slides."""
    slides = config.sliding_window is not None
    return window_keys(config) | {"max_window_layers": config.sliding_from if slides else config.layers}


def latent_keys(config: ModelConfig) -> dict[str, Any]:
    """Of DeepSeek's attention."""
    return {"attention_bias": False, **{theirs: getattr(config.latent, ours) for ours, theirs in LATENT_KEYS.items()}}


def read_latent(full: Mapping[str, Any]) -> Latent:
    """The other way."""
    return Latent(**{ours: full[theirs] for ours, theirs in LATENT_KEYS.items()})


def routed_keys(config: ModelConfig, *, method: str) -> dict[str, Any]:
    """Of experts in the words of DeepSeek, whose class always has some: else in the blocks after the last.

    vLLM, llama.cpp's converter and DeepSeek's own code ask for how they are chosen; the class implies it.
    """
    if config.moe is None:
        return {"first_k_dense_replace": config.layers}
    sizes = {theirs: getattr(config.moe, ours) for ours, theirs in ROUTED_KEYS.items()}
    return sizes | {"scoring_func": config.moe.score, "moe_layer_freq": 1, "topk_method": method}


def read_routed(full: Mapping[str, Any], *, score: Score, grouped: bool = True) -> MoE | None:
    """The other way. grouped: experts are chosen inside the best groups of them."""
    if full["first_k_dense_replace"] >= full["num_hidden_layers"]:
        return None
    sizes = {ours: full[theirs] for ours, theirs in ROUTED_KEYS.items()}
    sizes |= {key: 1 for key in ("groups", "active_groups") if sizes[key] is None or not grouped}
    return MoE(**sizes, score=score, **training_of(full))


def qwen_keys(moe: MoE | None) -> dict[str, Any]:
    """Of experts in the words of Qwen."""
    assert moe is not None  # these families always have them
    sizes = {theirs: getattr(moe, ours) for ours, theirs in QWEN_KEYS.items()}
    return sizes | {"decoder_sparse_step": 1, "mlp_only_layers": list(range(moe.first_dense))}


def read_qwen(full: Mapping[str, Any], **shared: Any) -> MoE:
    """The other way; their class may know the number of experts under another name than files do."""
    known = {"num_experts": full.get("num_local_experts"), **full}
    sizes = {ours: known[theirs] for ours, theirs in QWEN_KEYS.items()}
    return MoE(**sizes, first_dense=len(full.get("mlp_only_layers") or []), **shared, **training_of(full))


def training_of(full: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder of ours says of how experts are trained."""
    return dict(full.get(OURS) or {})
