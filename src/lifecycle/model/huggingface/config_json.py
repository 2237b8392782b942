"""Sizes and switches as the keys of a config.json: `to_hf_config` writes them, `from_hf_config` reads them.

Every key that changes the network is written, also where it is their default, so that no version's default decides.
`from_hf_config` refuses a known key whose value cannot be built: a network that is nearly the same is another network.
A key that the class in `transformers` does not know is ignored, as it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.errors import UserError
from lifecycle.model.config import ModelConfig
from lifecycle.model.families import FAMILIES, family_of
from lifecycle.model.family import Family
from lifecycle.model.huggingface.angles import read_rope, rope_parameters
from lifecycle.model.interchange import OURS, OURS_KEYS
from lifecycle.model.parts import Latent

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
SOFTCAP = "final_logit_softcapping"

INIT_STD = 0.02
"""Of fresh parts, where a converter wrote 0: their classes' own default."""


# -- out


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json for this model.

    The ids of special tokens and the dtype of the files are added by `export`. Errors: `UserError` where the
    vocabulary is not known yet.
    """
    family = family_of(config.family)
    hf_config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in COMMON.items()},
        "vocab_size": config.vocab,
        **rope_parameters(config),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
        "dtype": "float32",
        **({"head_dim": config.head_dim} if config.latent is None else {}),
        **family.keys(config),
    }
    if config.moe is not None:
        hf_config[OURS] = {key: getattr(config.moe, key) for key in OURS_KEYS}
    if config.logit_softcap is not None:
        hf_config[SOFTCAP] = config.logit_softcap
    return hf_config


# -- in


def from_hf_config(hf_config: Mapping[str, Any], *, place: str = "the model") -> ModelConfig:
    """The inverse of `to_hf_config`. A key that is absent has the default of the class in `transformers`.

    `place` names the source in errors. Errors: `UserError` for an unknown `model_type`, and one that lists every key
    whose value is not built here.
    """
    name = hf_config.get("model_type")
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"{place}: model_type is {name!r}; the architectures known here are {known}")
    full = _filled(name, hf_config, place)
    family = family_of(name)
    scaling, faults = read_rope(full)
    faults = [*_unbuilt(family, full), *faults]
    window, slides_from, odd = _window(full)
    if faults or odd:
        lines = "\n".join(f"  - {fault}" for fault in [*faults, *odd])
        raise UserError(f"{place}: this network is not built here:\n{lines}")
    try:
        own = family.read(full)
        return ModelConfig(
            family=name,
            **{ours: full[theirs] for ours, theirs in COMMON.items()},
            head_dim=_head_dim(full, own.get("latent")),
            rope_theta=float(full["rope_parameters"]["rope_theta"]),
            sliding_window=window,
            sliding_from=slides_from,
            rotary_share=float(full["rope_parameters"].get("partial_rotary_factor", 1.0)),
            rope_scaling=scaling,
            logit_softcap=hf_config.get(SOFTCAP),
            **{"qk_norm": False, **own},
        )
    except UserError as error:  # which speaks of our keys
        raise UserError(f"{place}, by its config.json: {error}") from error


def _filled(name: str, hf_config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """config.json with the defaults of the class in `transformers` filled in."""
    import transformers  # here: it takes a second, and few runs come from elsewhere

    try:
        full: dict[str, Any] = transformers.CONFIG_MAPPING[name].from_dict(dict(hf_config)).to_dict()
    except Exception as error:  # their classes refuse by errors of many kinds
        raise UserError(
            f"{place}: config.json says what transformers {transformers.__version__} does not take for {name}: "
            f"{' '.join(str(error).split())}; mend it there, or get the file again"
        ) from error
    odd = {key: full.get(key) for key in COMMON.values() if not isinstance(full.get(key), int | float)}
    if odd:
        said = ", ".join(f"{key} is {value!r}" for key, value in odd.items())
        raise UserError(f"{place}: config.json: {said}; a number (or true, false) is wanted; get the file again")
    if full.get("hidden_act") == "swish":  # two names of one function
        full["hidden_act"] = "silu"
    full["initializer_range"] = full["initializer_range"] or INIT_STD
    return full


def _unbuilt(family: Family, full: Mapping[str, Any]) -> list[str]:
    faults = [
        f"{key} is {full[key]!r}; only {value!r} is built"
        for key, value in family.only.items()
        if full.get(key) is not None and full[key] != value
    ]
    if family.methods and full.get("topk_method") not in (*family.methods, None):
        faults.append(f"topk_method is {full['topk_method']!r}; only {family.methods[0]!r} is built")
    dense = full.get("mlp_only_layers") or []
    if sorted(dense) != list(range(len(dense))):
        faults.append(f"mlp_only_layers is {dense}; only the first blocks can be dense")
    return faults


def _head_dim(full: Mapping[str, Any], latent: Latent | None) -> int:
    if latent is not None:
        return latent.nope_dim + latent.rope_dim
    return int(full.get("head_dim") or full["hidden_size"] // full["num_attention_heads"])


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
