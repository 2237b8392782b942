"""Sizes and switches as the keys of a config.json: `to_hf_config` writes them, `from_hf_config` reads them.

Every key that changes the network is written, also where it is their default, so that no version's default decides.
`from_hf_config` refuses a known key whose value cannot be built: a network that is nearly the same is another network.
A key that the class in `transformers` does not know is ignored, as it is there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lifecycle.errors import UserError
from lifecycle.model.config import ModelConfig
from lifecycle.model.families import FAMILIES, family_of
from lifecycle.model.family import SCORING, Family
from lifecycle.model.huggingface.key_types import ORIGINAL, SOFTCAP, odd_containers, odd_numbers
from lifecycle.model.interchange import OURS, OURS_KEYS
from lifecycle.model.parts import Latent, RopeScaling

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
"""Fields of `ModelSizes` and the keys of config.json that every family has for them."""

LABEL = "LABEL_0"
"""Of the one score, as `transformers` calls it itself."""

ROPE = {
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}
"""Fields of `RopeScaling` beside factor and original_positions, by kind; config.json has the same names for them."""

MSCALE = "mscale_all_dim"

BESIDE = ("model_type", "head_dim", "per_layer_config", SOFTCAP, OURS)
"""Keys of every family that are read though they are no fields of the class in `transformers`."""

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
        "architectures": [family.ending(score_head=config.score_head)],
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
    if config.score_head:
        hf_config |= {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}, "problem_type": "regression"}
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
    with _said_of(place):
        scaling, faults = read_rope(full)
    scored = any(str(one).endswith(SCORING) for one in hf_config.get("architectures") or ())
    faults = [*_unbuilt(family, full), *(_labels(full) if scored else []), *faults]
    window, slides_from, odd = _window(family, full)
    if faults or odd:
        lines = "\n".join(f"  - {fault}" for fault in [*faults, *odd])
        raise UserError(f"{place}: this network is not built here:\n{lines}")
    share = full["rope_parameters"].get("partial_rotary_factor")
    with _said_of(place):
        own = family.read(full)
        return ModelConfig(
            family=name,
            **{ours: full[theirs] for ours, theirs in COMMON.items()},
            head_dim=_head_dim(full, own.get("latent")),
            rope_theta=float(full["rope_parameters"]["rope_theta"]),
            sliding_window=window,
            sliding_from=slides_from,
            rotary_share=1.0 if share is None else float(share),
            rope_scaling=scaling,
            logit_softcap=full.get(SOFTCAP),
            score_head=scored,
            **{"qk_norm": False, **own},
        )


@contextmanager
def _said_of(place: str) -> Iterator[None]:
    """A `UserError` that names our keys is one of this place's config.json, where alone they can be changed."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{place}, by its config.json: {error}\nwhat is model.* here comes from that file and is not typed: mend "
            "it there, or begin with another model"
        ) from error


def _refuse_types(place: str, odd: list[str]) -> None:
    if odd:
        raise UserError(f"{place}: config.json: {'; '.join(odd)}; get the file again, or mend it there")


def _filled(name: str, hf_config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """config.json with the defaults of the class in `transformers` filled in."""
    import transformers  # here: it takes a second, and few runs come from elsewhere

    _refuse_types(place, odd_containers(hf_config))
    try:
        full: dict[str, Any] = transformers.CONFIG_MAPPING[name].from_dict(dict(hf_config)).to_dict()
    except Exception as error:  # their classes refuse by errors of many kinds
        raise UserError(
            f"{place}: config.json says what transformers {transformers.__version__} does not take for {name}: "
            f"{' '.join(str(error).split())}; mend it there, or get the file again"
        ) from error
    known = known_keys(name)
    full = {key: value for key, value in full.items() if key in known}
    _refuse_types(place, odd_numbers(full, tuple(COMMON.values())))
    if full.get("hidden_act") == "swish":  # two names of one function
        full["hidden_act"] = "silu"
    full["initializer_range"] = full["initializer_range"] or INIT_STD
    return full


def known_keys(name: str) -> frozenset[str]:
    """Keys of a config.json that the class in `transformers` of this family reads; every other one means nothing there,
    and so nothing here, whatever it means to another class."""
    import transformers

    theirs, family = transformers.CONFIG_MAPPING[name], family_of(name)
    taken = {key for one in theirs.__mro__ for key in inspect.signature(one).parameters}
    renamed = {*theirs.attribute_map, *theirs.attribute_map.values()}
    methods = ("topk_method",) if family.methods else ()  # DeepSeek's own code reads it
    return frozenset({*taken, *renamed, *methods, *family.beside, *BESIDE})


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


def _labels(full: Mapping[str, Any]) -> list[str]:
    """What is not built of a model that ends in classes: one class alone is a score."""
    count = len(full.get("id2label") or ())
    return [] if count == 1 else [f"id2label has {count} labels; a model that ends in 1, a score, is built"]


def _head_dim(full: Mapping[str, Any], latent: Latent | None) -> int:
    if latent is not None:
        return latent.nope_dim + latent.rope_dim
    return int(full.get("head_dim") or full["hidden_size"] // full["num_attention_heads"])


def _window(family: Family, full: Mapping[str, Any]) -> tuple[int | None, int, list[str]]:
    """Keys that a query sees, the first block where this holds, and faults."""
    window = full.get("sliding_window") or None
    if full.get("use_sliding_window") is False or window is None:
        return None, 0, []
    slides = [kind == "sliding_attention" for kind in full.get("layer_types") or ["sliding_attention"]]
    if not any(slides):
        return None, 0, []
    first = slides.index(True)
    if first and family.switches.sliding == "all":
        return None, 0, ["layer_types mixes; all blocks can slide, or none"]
    odd = [] if all(slides[first:]) else ["layer_types mixes; only the blocks from one on can slide"]
    return window, first, odd


# -- rotary positions: in the layout of `transformers` 5 and, beside it, that of version 4


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """The keys of config.json for rotary positions: `rope_parameters`, and the older `rope_theta`, `rope_scaling`."""
    scaling = config.rope_scaling
    theta = config.stretched_theta  # config.json has no name for ntk
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None and scaling.kind != "ntk":
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind in ("yarn", "llama3"):
            rope[ORIGINAL] = scaling.original_positions
        keys = _scaling_keys(scaling.kind, latent=config.latent is not None)
        rope |= {key: getattr(scaling, key) for key in keys if getattr(scaling, key) is not None}
    # where transformers 4, and what is built on it, looks; it would silently take its own default otherwise
    older: dict[str, Any] = {"rope_theta": theta, "rope_scaling": None if len(rope) == 1 else dict(rope)}
    if family_of(config.family).switches.partial_rotary:
        rope["partial_rotary_factor"] = older["partial_rotary_factor"] = config.rotary_share
    return {"rope_parameters": rope | {"rope_theta": theta}, **older}


def _scaling_keys(kind: str, *, latent: bool) -> tuple[str, ...]:
    """Fields of `RopeScaling` beside factor and original_positions. Latent attention sharpens its softmax in every kind
    of scaling, which is yarn's own elsewhere."""
    keys = ROPE.get(kind, ())
    return (*keys, MSCALE) if latent and MSCALE not in keys else keys


def read_rope(full: Mapping[str, Any]) -> tuple[RopeScaling | None, list[str]]:
    """The scaling of a config.json (None: none), and a line for each part of it that is not built here.

    full: config.json with the defaults of its class filled in.
    """
    rope = full["rope_parameters"]
    kind = rope.get("rope_type", "default")
    faults = []
    whole = not family_of(full["model_type"]).switches.partial_rotary
    if whole and rope.get("partial_rotary_factor") not in (None, 1.0):
        faults.append(f"partial_rotary_factor is {rope['partial_rotary_factor']}; only 1.0 is built for this family")
    if kind == "default":
        return None, faults
    if kind not in ("linear", "yarn", "llama3"):
        built = "'default', 'linear', 'yarn' and 'llama3' are built"
        return None, [*faults, f"rope_parameters.rope_type is {kind!r}; {built}"]
    if not rope.get("truncate", True):
        faults.append("rope_parameters.truncate is False; only True is built")
    original = rope.get(ORIGINAL)
    factor = rope.get("factor")
    if factor is None and original:
        factor = full["max_position_embeddings"] / original
    if factor is None:
        return None, [*faults, "rope_parameters.factor is missing"]
    keys = _scaling_keys(kind, latent=family_of(full["model_type"]).switches.latent)
    given = {key: float(rope[key]) for key in keys if rope.get(key) is not None}
    if kind == "linear":
        original = None
    return RopeScaling(kind=kind, factor=float(factor), original_positions=original, **given), faults
