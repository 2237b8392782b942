"""Rotary positions as keys of a config.json: in the layout of `transformers` 5 and, beside it, that of version 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.model.config import ModelConfig
from lifecycle.model.families import family_of
from lifecycle.model.parts import RopeScaling

YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
LLAMA3 = ("low_freq_factor", "high_freq_factor")
ORIGINAL = "original_max_position_embeddings"


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """The keys of config.json for rotary positions: `rope_parameters`, and the older `rope_theta`, `rope_scaling`."""
    scaling = config.rope_scaling
    theta = stretched_theta(config)
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None and scaling.kind != "ntk":
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind in ("yarn", "llama3"):
            rope[ORIGINAL] = scaling.original_positions
        keys = {"yarn": YARN, "llama3": LLAMA3}.get(scaling.kind, ())
        rope |= {key: getattr(scaling, key) for key in keys if getattr(scaling, key) is not None}
    # where transformers 4, and what is built on it, looks; it would silently take its own default otherwise
    older: dict[str, Any] = {"rope_theta": theta, "rope_scaling": None if len(rope) == 1 else dict(rope)}
    if family_of(config.family).switches.partial_rotary:
        rope["partial_rotary_factor"] = older["partial_rotary_factor"] = config.rotary_share
    return {"rope_parameters": rope | {"rope_theta": theta}, **older}


def stretched_theta(config: ModelConfig) -> float:
    """The base theta of the frequencies. NTK scaling, for which config.json has no name, is a larger base:
    theta factor^(K / (K - 2)), K the dimensions that are rotated."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "ntk":
        return config.rope_theta
    return float(config.rope_theta * scaling.factor ** (config.rotary_dim / (config.rotary_dim - 2)))


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
    factor = rope.get("factor") or (full["max_position_embeddings"] / original if original else None)
    if factor is None:
        return None, [*faults, "rope_parameters.factor is missing"]
    keys = {"yarn": YARN, "llama3": LLAMA3}.get(kind, ())
    given = {key: float(rope[key]) for key in keys if rope.get(key) is not None}
    if kind == "linear":
        original = None
    return RopeScaling(kind=kind, factor=float(factor), original_positions=original, **given), faults
