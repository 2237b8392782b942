"""Qwen2 and 2.5: llama, biases on queries, keys and values, a window from some block on (arXiv 2407.10671)."""

from lifecycle.model.family import Family, Switches
from lifecycle.model.interchange import window_from_keys

FAMILY = Family(
    architecture="Qwen2ForCausalLM",
    switches=Switches(qkv_bias=True, sliding="from"),
    keys=window_from_keys,
    read=lambda full: {"qkv_bias": True},
)
