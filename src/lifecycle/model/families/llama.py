"""Llama: grouped queries, rotary positions, SwiGLU (arXiv 2302.13971, 2407.21783)."""

from lifecycle.model.family import Family, Switches

FAMILY = Family(
    architecture="LlamaForCausalLM",
    switches=Switches(whole_heads=True),
    keys=lambda config: {"attention_bias": False, "mlp_bias": False},
)
