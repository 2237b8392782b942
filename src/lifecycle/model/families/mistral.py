"""Mistral: llama, and a sliding window in every block (arXiv 2310.06825)."""

from lifecycle.model.family import Family, Switches

FAMILY = Family(
    architecture="MistralForCausalLM",
    switches=Switches(sliding="all"),
    keys=lambda config: {"sliding_window": config.sliding_window},
    # with layer_types, `AutoConfig` takes a Mistral for a Ministral, the same with a window in some blocks
    beside=("layer_types",),
)
