"""The head of a GGUF file (llama.cpp) as the content of a config.json.

Known are llama (and Mistral and Mixtral, which llama.cpp writes as llama), qwen2, qwen3 and their mixtures of experts.
A key that is absent has the value that llama.cpp gives it. A key that changes the network is read, or its value is that
of the only network that is built here, or the file is refused.

Shapes: K width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lifecycle.errors import UserError

KNOWN = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
"""The file's architecture -> their model_type."""

KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
NEEDED = (
    "embedding_length",
    "block_count",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
    "context_length",
)
"""Those that have no default."""

ONLY = {
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "logit_scale": (1.0, 0.0),
    "residual_scale": (1.0, 0.0),
    "embedding_scale": (1.0, 0.0),
    "expert_weights_scale": (1.0, 0.0),
    "expert_group_count": (1, 0),
    "expert_gating_func": (1, 0),  # softmax
}
"""Keys that change the network, and the values that leave it as it is built here; 0 stands for "not set"."""

DIVISORS = "rope_freqs.weight"
SAFE = "get it again, or the safetensors folder"


def head_to_hf_config(
    head: Mapping[str, Any], *, vocab: int, tied: bool, divisors: Tensor | None, place: str
) -> dict[str, Any]:
    """The content that a config.json of this model would have.

    divisors: of the rotary angles, one a frequency, where the file holds them. `place` names the file in errors.
    Errors: `UserError` for an architecture that is not known here, a head that is not whole, and one that lists every
    key whose value is not built here.
    """
    arch = head["general.architecture"]
    if arch not in KNOWN:
        raise UserError(f"the GGUF file holds {arch!r}; read are {', '.join(KNOWN)}: get the safetensors folder")
    said = _with_defaults(arch, head, place)
    hf_config = {theirs: said[key] for key, theirs in KEYS.items() if key in said}
    hf_config |= {"model_type": _model_type(arch, said), "vocab_size": vocab, "tie_word_embeddings": tied}
    hf_config["num_experts"] = hf_config["num_local_experts"] = said.get("expert_count", 0)
    if window := said.get("attention.sliding_window"):  # in every block: no key says otherwise
        hf_config |= {"sliding_window": window, "use_sliding_window": True, "max_window_layers": 0}
    if cap := said.get("final_logit_softcapping"):
        hf_config["final_logit_softcapping"] = cap
    scaling, faults = _scaling(said)
    faults = [*_unbuilt(said), *faults]
    if scaling and divisors is not None:
        faults.append(f"rope.scaling.factor is {scaling['factor']}, and {DIVISORS} divides too; only one is built")
    if faults:
        lines = "\n".join(f"  - {arch}.{fault}" for fault in faults)
        raise UserError(f"{place}: this network is not built here:\n{lines}")
    if divisors is not None:
        scaling = _llama3(place, divisors, said["rope.freq_base"])
    return hf_config | ({"rope_scaling": scaling} if scaling else {})


def _with_defaults(arch: str, head: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The architecture's keys, with the values that llama.cpp gives to those that are absent."""
    said = {key.removeprefix(f"{arch}."): _decimal(value) for key, value in head.items() if key.startswith(f"{arch}.")}
    needed = (*NEEDED, *(("expert_used_count",) if said.get("expert_count") else ()))
    if missing := [key for key in needed if key not in said]:
        raise UserError(f"{place} holds no {', '.join(f'{arch}.{key}' for key in missing)}; {SAFE}")
    numbers = {*KEYS, *ONLY, "expert_count", "rope.dimension_count", "attention.scale", "attention.sliding_window"}
    numbers |= {f"rope.scaling.{key}" for key in ("factor", "original_context_length")} | {"rope.scale_linear"}
    numbers |= {f"rope.scaling.yarn_{key}" for key in ("beta_fast", "beta_slow", "attn_factor", "ext_factor")}
    odd = [f"{arch}.{key} is {said[key]!r}" for key in sorted(numbers & said.keys()) if not _number(said[key])]
    if odd:
        raise UserError(f"{place}: {', '.join(odd)}; one number for all blocks is wanted; {SAFE}")
    heads = said["attention.head_count"]
    defaults = {
        "attention.head_count_kv": heads,
        "attention.key_length": said["embedding_length"] // heads if heads else 0,
        "rope.freq_base": 10000.0,
        "expert_weights_norm": arch == "qwen3moe",  # what llama.cpp's networks of these architectures do
    }
    return defaults | said


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _decimal(value: Any) -> Any:
    """The head's floats have 32 bits: 1e-5, not 9.999999747378752e-06, was meant."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _model_type(arch: str, said: Mapping[str, Any]) -> str:
    if arch != "llama":
        return KNOWN[arch]
    if said.get("expert_count"):
        return "mixtral"
    return "mistral" if said.get("attention.sliding_window") else "llama"


def _unbuilt(said: Mapping[str, Any]) -> list[str]:
    K = said["attention.key_length"]
    only = ONLY | {"rope.dimension_count": (K,), "attention.scale": (K**-0.5 if K else 0.0, 0.0)}
    return [
        f"{key} is {said[key]}; only {accepted[0]} is built"
        for key, accepted in only.items()
        if key in said and not _among(said[key], *accepted)
    ]


def _among(value: float, *accepted: float) -> bool:
    return any(math.isclose(value, one, rel_tol=1e-5) for one in accepted)


# -- rotary positions


def _scaling(said: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """`rope_scaling` of a config.json (None: none), and faults. As llama.cpp does: linear where no type is named, the
    older `scale_linear` where there is no factor, none at a factor of 0 or 1."""
    kind = said.get("rope.scaling.type", "linear")
    factor = said.get("rope.scaling.factor", said.get("rope.scale_linear")) or 1.0
    if kind not in ("none", "", "linear", "yarn"):
        return None, [f"rope.scaling.type is {kind!r}; 'none', 'linear' and 'yarn' are built"]
    faults = _yarn_faults(said, factor if kind == "yarn" else None)
    if kind != "yarn":
        stretched = kind == "linear" and factor != 1
        return {"rope_type": kind, "factor": factor} if stretched else None, faults
    original = said.get("rope.scaling.original_context_length") or said["context_length"]
    betas = {key: said.get(f"rope.scaling.yarn_{key}") for key in ("beta_fast", "beta_slow")}
    scaling = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    return scaling | {key: value for key, value in betas.items() if value is not None}, faults


def _yarn_faults(said: Mapping[str, Any], factor: float | None) -> list[str]:
    """What is not built of yarn's extrapolation, and of its factor of cos and sin; factor: None where it is not yarn.

    llama.cpp multiplies its own 0.1 ln(factor) + 1 with the latter, its converter writes there what a config.json gives
    for the whole: 1 by the first reading and the usual factor by the second are the same network.
    """
    mix, attention = (said.get(f"rope.scaling.yarn_{key}") for key in ("ext_factor", "attn_factor"))
    built = 0.0 if factor is None else 1.0
    faults = []
    if mix is not None and not (mix < 0 or mix == built):  # below 0: not set
        faults.append(f"rope.scaling.yarn_ext_factor is {mix}; only {built} is built")
    usual = 1.0 if factor is None else 0.1 * math.log(max(factor, 1.0)) + 1.0
    if attention is not None and not _among(attention, 1.0, usual):
        faults.append(f"rope.scaling.yarn_attn_factor is {attention}; only 1.0 is built")
    return faults


def _llama3(place: str, divisors: Tensor, theta: float) -> dict[str, Any]:
    """The parameters whose divisors these are: Llama 3's differ in their factor only, which is the largest one."""
    factor = float(divisors.max().round())
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    K = 2 * len(divisors)
    waves = 2 * torch.pi * theta ** (torch.arange(0, K, 2, dtype=torch.float64, device="cpu") / K)
    smooth = ((8192 / waves - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not torch.allclose(divisors.double(), expected, rtol=1e-3):
        raise UserError(
            f"{place} holds divisors of the rotary angles ({DIVISORS}) that are not Llama 3's; get the safetensors "
            "folder of this model"
        )
    return scaling
