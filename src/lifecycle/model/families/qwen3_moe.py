"""Qwen3 with experts (arXiv 2505.09388)."""

from lifecycle.model.family import ExpertSwitches, Family, Switches
from lifecycle.model.interchange import BLOCK, EXPERTS, qwen_keys, read_qwen, window_keys

FAMILY = Family(
    architecture="Qwen3MoeForCausalLM",
    switches=Switches(qk_norm=True, sliding="all", experts=ExpertSwitches(score="softmax"), dense=False),
    keys=lambda config: {"attention_bias": False, **window_keys(config), **qwen_keys(config.moe)},
    read=lambda full: {"qk_norm": True, "moe": read_qwen(full)},
    tensors=BLOCK | EXPERTS,
)
