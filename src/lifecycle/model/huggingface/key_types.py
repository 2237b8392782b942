"""Values of a config.json that are of another type than their keys: what came, and what is wanted.

The class in `transformers` looks at its own fields. It does not look inside them, at keys beside them, at those with an
older name, or at a null where a number is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from lifecycle.model.interchange import LATENT_KEYS, OURS, OURS_KEYS, QWEN_KEYS, ROUTED_KEYS
from lifecycle.model.parts import RopeScaling

ROPE_PARAMETERS = "rope_parameters"
SOFTCAP = "final_logit_softcapping"

OBJECTS = (ROPE_PARAMETERS, "rope_scaling", "quantization_config", "id2label", OURS)
LISTS = ("architectures", "layer_types", "mlp_only_layers")

MAY_BE_NULL = ("head_dim", "sliding_window", "n_group", "topk_group", "q_lora_rank", SOFTCAP)
NUMBERS = {
    *(key for keys in (LATENT_KEYS, ROUTED_KEYS, QWEN_KEYS) for key in keys.values()),
    *("num_local_experts", "shared_expert_intermediate_size", *MAY_BE_NULL),
}
"""Beside those that every family has."""

ORIGINAL = "original_max_position_embeddings"
ROPE_NUMBERS = {field.name for field in fields(RopeScaling) if field.name not in ("kind", "original_positions")}
ROPE_NUMBERS |= {ORIGINAL, "partial_rotary_factor"}
"""Of `rope_parameters`, beside its theta."""


def odd_containers(hf_config: Mapping[str, Any]) -> list[str]:
    """A line for each key of the file that must hold an object or a list, and holds something else, and for numbers of
    rotary positions, with which the class in `transformers` reckons before it looks."""
    wanted = [(key, dict, "an object") for key in OBJECTS] + [(key, list, "a list") for key in LISTS]
    odd = [
        f"{key} is {hf_config[key]!r}; {said} or null is wanted"
        for key, kind, said in wanted
        if hf_config.get(key) is not None and not isinstance(hf_config[key], kind)
    ]
    rope = [(key, hf_config.get(key)) for key in (ROPE_PARAMETERS, "rope_scaling")]
    return odd + _odd([one for name, held in rope if isinstance(held, dict) for one in _of_rope(name, held)])


def odd_numbers(full: Mapping[str, Any], common: tuple[str, ...]) -> list[str]:
    """A line for each number that is none. full: config.json with the defaults of its class filled in; `common`: keys
    that every family has."""
    return _odd(_numbers(full, common))


def _odd(numbers: Iterable[tuple[str, Any, bool]]) -> list[str]:
    return [
        f"{key} is {value!r}; {'a number or null' if null else 'a number (or true, false)'} is wanted"
        for key, value, null in numbers
        if not (null and value is None) and not (isinstance(value, int | float) and math.isfinite(value))
    ]


def _numbers(full: Mapping[str, Any], common: tuple[str, ...]) -> Iterator[tuple[str, Any, bool]]:
    """The key, the value, and whether it may be null, of every number that is read."""
    for key in common:
        yield key, full.get(key), False
    for key in sorted(NUMBERS & full.keys()):
        yield key, full[key], key in MAY_BE_NULL
    rope = full[ROPE_PARAMETERS]
    yield f"{ROPE_PARAMETERS}.rope_theta", rope.get("rope_theta"), False
    yield from _of_rope(ROPE_PARAMETERS, rope)
    ours = full.get(OURS) or {}
    for key in OURS_KEYS:
        if key in ours:
            yield f"{OURS}.{key}", ours[key], False


def _of_rope(name: str, rope: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    for key in sorted(ROPE_NUMBERS & rope.keys()):
        yield f"{name}.{key}", rope[key], True
