"""Qwen3: llama, normalised queries and keys, a window from some block on (arXiv 2505.09388)."""

from lifecycle.model.family import Family, Switches
from lifecycle.model.interchange import window_from_keys

FAMILY = Family(
    architecture="Qwen3ForCausalLM",
    switches=Switches(qk_norm=True, sliding="from"),
    keys=lambda config: {"attention_bias": False, **window_from_keys(config)},
    read=lambda full: {"qk_norm": True},
)
