"""Sizes and switches in the words of a config.json: `describe` writes it, `understand` reads it.

Every key that changes the network is written, also where it is their default, so that no version's default decides.
What `understand` cannot build it refuses; a network that is nearly the same is another network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from lifecycle.errors import UserError
from lifecycle.model.config import ModelConfig
from lifecycle.model.families import Family
from lifecycle.model.huggingface.angles import read_rope, rope_parameters
from lifecycle.model.switches import Latent, MoE

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}
"""Our family, which is their model_type, and their class."""

GROUPED = ("glm4_moe", "deepseek_v2", "deepseek_v3")
"""Their experts share one vocabulary: n_routed_experts, first_k_dense_replace, n_group."""

COMMON = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "ffn_width": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
    "tied_head": "tie_word_embeddings",
}
LATENT = {
    "q_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank",
    "nope_dim": "qk_nope_head_dim",
    "rope_dim": "qk_rope_head_dim",
    "v_dim": "v_head_dim",
}
ROUTED = {
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
QWEN_ROUTED = {
    "experts": "num_experts",
    "active": "num_experts_per_tok",
    "ffn_width": "moe_intermediate_size",
    "normalise": "norm_topk_prob",
}

PLAIN = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "moe_layer_freq": 1,
    "router_jitter_noise": 0.0,
}
"""Keys that change a network, and the only values that ours has."""

# Training only, so their configs have no word for it; kept that a later stage goes on in the same way.
OURS, OURS_KEYS = "lifecycle", ("bias_rate", "balance")
SOFTCAP = "final_logit_softcapping"


# -- out


def describe(config: ModelConfig) -> dict[str, Any]:
    """Their config.json for this model, whose vocabulary must be known; tokens and dtype are the export's."""
    described: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in COMMON.items()},
        "vocab_size": config.vocab,
        **rope_parameters(config),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
        "dtype": "float32",
        **_attention(config),
    }
    if config.moe is not None:
        described |= _experts(config, config.moe)
    elif config.family in GROUPED:  # their class always has experts: in the blocks after the last
        described["first_k_dense_replace"] = config.layers
    if config.logit_softcap is not None:
        described[SOFTCAP] = config.logit_softcap
    return described


def _attention(config: ModelConfig) -> dict[str, Any]:
    if config.latent is not None:
        interleaved = {"rope_interleave": True} if config.family == "deepseek_v3" else {"mlp_bias": False}
        latent = {theirs: getattr(config.latent, ours) for ours, theirs in LATENT.items()}
        return {"attention_bias": False, **interleaved, **latent}
    attention: dict[str, Any] = {"head_dim": config.head_dim}
    if config.family == "llama":
        attention |= {"attention_bias": False, "mlp_bias": False}
    if config.family in ("qwen3", "qwen3_moe"):
        attention["attention_bias"] = False
    if config.family == "glm4_moe":
        attention |= {"attention_bias": config.qkv_bias, "use_qk_norm": config.qk_norm}
    if config.family == "qwen2_moe":
        attention |= {"qkv_bias": config.qkv_bias, "use_sliding_window": False}
    if config.family in ("mistral", "mixtral"):
        attention["sliding_window"] = config.sliding_window
    if config.family in ("qwen2", "qwen3", "qwen3_moe"):
        attention |= {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window}
    if config.family in ("qwen2", "qwen3"):
        slides = config.sliding_window is not None
        attention["max_window_layers"] = config.sliding_from if slides else config.layers
    return attention


def _experts(config: ModelConfig, moe: MoE) -> dict[str, Any]:
    ours: dict[str, Any] = {OURS: {key: getattr(moe, key) for key in OURS_KEYS}}
    if config.family == "mixtral":
        sizes = {"num_local_experts": moe.experts, "num_experts_per_tok": moe.active}
        return ours | sizes | {"intermediate_size": moe.ffn_width}
    if config.family in ("qwen2_moe", "qwen3_moe"):
        ours |= {theirs: getattr(moe, key) for key, theirs in QWEN_ROUTED.items()}
        ours |= {"decoder_sparse_step": 1, "mlp_only_layers": list(range(moe.first_dense))}
        return ours | ({"shared_expert_intermediate_size": moe.shared_width} if moe.shared else {})
    ours |= {theirs: getattr(moe, key) for key, theirs in ROUTED.items()}
    # vLLM, llama.cpp's converter and DeepSeek's own code ask for these; the class of `transformers` implies them
    ours |= {"scoring_func": moe.score, "moe_layer_freq": 1}
    if config.family == "deepseek_v2":
        return ours | {"topk_method": "greedy" if moe.groups == 1 else "group_limited_greedy"}
    return ours | {"topk_method": "noaux_tc", "num_nextn_predict_layers": 0}


# -- in


def understand(described: Mapping[str, Any], *, place: str = "the model") -> ModelConfig:
    """Their config.json in our terms; what it leaves out is what their class says.

    `place` names the source in errors. Errors: `UserError` that lists everything that is not built here.
    """
    family = described.get("model_type")
    if family not in ARCHITECTURES:
        known = ", ".join(get_args(Family))
        raise UserError(f"{place}: model_type is {family!r}; the architectures known here are {known}")
    from transformers import CONFIG_MAPPING  # here: it takes a second, and few runs come from elsewhere

    full: dict[str, Any] = CONFIG_MAPPING[family].from_dict(dict(described)).to_dict()
    if family in ("qwen2_moe", "qwen3_moe"):  # the class may know it under another name than files do
        full["num_experts"] = full.get("num_experts", full.get("num_local_experts"))
    scaling, faults = read_rope(full)
    faults = [*_unbuilt(family, full), *faults]
    window, slides_from, odd = _window(full)
    if faults or odd:
        lines = "\n".join(f"  - {fault}" for fault in [*faults, *odd])
        raise UserError(f"{place}: this network is not built here:\n{lines}")
    sizes = {ours: full[theirs] for ours, theirs in COMMON.items()}
    moe = _read_experts(family, full)
    latent = Latent(**{key: full[theirs] for key, theirs in LATENT.items()}) if "kv_lora_rank" in full else None
    return ModelConfig(
        family=family,
        **sizes,
        head_dim=_head_dim(full, latent),
        rope_theta=float(full["rope_parameters"]["rope_theta"]),
        qk_norm=family in ("qwen3", "qwen3_moe") or bool(full.get("use_qk_norm", False)),
        qkv_bias=_biased(family, full),
        sliding_window=window,
        sliding_from=slides_from,
        rotary_share=float(full["rope_parameters"].get("partial_rotary_factor", 1.0)),
        rope_scaling=scaling,
        logit_softcap=described.get(SOFTCAP),
        moe=moe,
        latent=latent,
    )


def _unbuilt(family: str, full: Mapping[str, Any]) -> list[str]:
    plain: dict[str, Any] = dict(PLAIN)
    if family == "glm4_moe":
        del plain["attention_bias"]
    if family == "qwen2_moe":  # every second block slides, which no checkpoint uses
        plain["use_sliding_window"] = False
    if family == "deepseek_v2":  # their class does not divide, whatever this key says
        plain["norm_topk_prob"] = False
    faults = [
        f"{key} is {full[key]!r}; only {value!r} is built" for key, value in plain.items() if _differs(full, key, value)
    ]
    methods = ("greedy", "group_limited_greedy") if family == "deepseek_v2" else ("noaux_tc", None)
    if family in GROUPED and full.get("topk_method") not in (*methods, None):
        faults.append(f"topk_method is {full['topk_method']!r}; only {methods[0]!r} is built")
    dense = full.get("mlp_only_layers") or []
    if sorted(dense) != list(range(len(dense))):
        faults.append(f"mlp_only_layers is {dense}; only the first blocks can be dense")
    return faults


def _differs(full: Mapping[str, Any], key: str, value: Any) -> bool:
    return full.get(key, value) is not None and full.get(key, value) != value


def _head_dim(full: Mapping[str, Any], latent: Latent | None) -> int:
    if latent is not None:
        return latent.nope_dim + latent.rope_dim
    return int(full.get("head_dim") or full["hidden_size"] // full["num_attention_heads"])


def _biased(family: str, full: Mapping[str, Any]) -> bool:
    if family == "qwen2":
        return True
    return bool(full.get({"qwen2_moe": "qkv_bias", "glm4_moe": "attention_bias"}.get(family, ""), False))


def _window(full: Mapping[str, Any]) -> tuple[int | None, int, list[str]]:
    """Keys that a query sees, the first block where this holds, and faults."""
    window = full.get("sliding_window") or None
    if full.get("use_sliding_window") is False or window is None:
        return None, 0, []
    slides = [kind == "sliding_attention" for kind in full.get("layer_types") or ["sliding_attention"]]
    if not any(slides):
        return None, 0, []
    first = slides.index(True)
    odd = [] if all(slides[first:]) else ["layer_types mixes; only the blocks from one on can slide"]
    return window, first, odd


def _read_experts(family: str, full: Mapping[str, Any]) -> MoE | None:
    ours = dict((full.get(OURS) or {}).items())
    if family == "mixtral":
        active, width = full["num_experts_per_tok"], full["intermediate_size"]
        return MoE(experts=full["num_local_experts"], active=active, ffn_width=width, **ours)
    if family in ("qwen2_moe", "qwen3_moe"):
        sizes = {key: full[theirs] for key, theirs in QWEN_ROUTED.items()}
        dense = len(full.get("mlp_only_layers") or [])
        if family == "qwen3_moe":
            return MoE(**sizes, first_dense=dense, **ours)
        shared = full["shared_expert_intermediate_size"]
        return MoE(**sizes, first_dense=dense, shared=1, shared_ffn_width=shared, shared_gate=True, **ours)
    if family not in GROUPED or full["first_k_dense_replace"] >= full["num_hidden_layers"]:
        return None
    sizes = {key: full[theirs] for key, theirs in ROUTED.items()}
    if family == "deepseek_v2" and full.get("topk_method") != "group_limited_greedy":
        sizes |= {"groups": 1, "active_groups": 1}
    sizes |= {key: 1 for key in ("groups", "active_groups") if sizes[key] is None}
    return MoE(**sizes, score="softmax" if family == "deepseek_v2" else "sigmoid", **ours)
