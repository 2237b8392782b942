"""Every family, shrunk, with every switch that its architecture has, and weights in which none can hide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.toy import toy
from torch import Tensor

from lifecycle.model import Decoder, ModelConfig, build
from lifecycle.model.parts import Latent, MoE, RopeScaling

LLAMA = toy(layers=3, width=32, head_dim=10, rope_theta=5e5, norm_eps=1e-6, tied_head=False)
QWEN3 = replace(LLAMA, family="qwen3", qk_norm=True, head_dim=8)
V3_ROUTING = MoE(
    experts=8,
    active=3,
    ffn_width=12,
    shared=2,
    first_dense=1,
    score="sigmoid",
    normalise=True,
    scale=2.5,
    groups=4,
    active_groups=2,
    bias_rate=0.001,
    balance=0.0001,
)
LATENT = Latent(q_rank=20, kv_rank=16, nope_dim=8, rope_dim=6, v_dim=10)
DEEPSEEK = replace(LLAMA, family="deepseek_v3", kv_heads=4, head_dim=14, latent=LATENT, moe=V3_ROUTING, norm_eps=1e-6)
YARN = RopeScaling(kind="yarn", factor=4.0, original_positions=16, mscale=0.8, mscale_all_dim=1.3)

CONFIGS = {
    "llama": LLAMA,
    "llama_tied": replace(LLAMA, tied_head=True),
    "llama_linear": replace(LLAMA, rope_scaling=RopeScaling(kind="linear", factor=2.0)),
    "llama_3": replace(
        LLAMA, rope_theta=100.0, rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_positions=32)
    ),
    "llama_yarn": replace(LLAMA, rope_scaling=replace(YARN, mscale=None, mscale_all_dim=None)),
    "mistral": replace(LLAMA, family="mistral", sliding_window=5),
    "mistral_whole": replace(LLAMA, family="mistral"),
    "qwen2": replace(LLAMA, family="qwen2", qkv_bias=True),
    "qwen2_sliding": replace(LLAMA, family="qwen2", qkv_bias=True, sliding_window=4, sliding_from=2, tied_head=True),
    "qwen3": QWEN3,
    "qwen3_sliding": replace(QWEN3, sliding_window=4, sliding_from=1, tied_head=True),
    "mixtral": replace(LLAMA, family="mixtral", sliding_window=6, moe=MoE(experts=4, active=2, ffn_width=40)),
    "qwen2_moe": replace(
        LLAMA,
        family="qwen2_moe",
        qkv_bias=True,
        moe=MoE(
            experts=5,
            active=2,
            ffn_width=12,
            shared=1,
            shared_ffn_width=20,
            shared_gate=True,
            first_dense=1,
            normalise=False,
        ),
    ),
    "qwen3_moe": replace(QWEN3, family="qwen3_moe", moe=MoE(experts=6, active=2, ffn_width=12, balance=0.01)),
    "glm4_moe": replace(
        QWEN3, family="glm4_moe", qkv_bias=True, rotary_share=0.5, moe=replace(V3_ROUTING, groups=1, active_groups=1)
    ),
    "deepseek_v2": replace(
        DEEPSEEK,
        family="deepseek_v2",
        latent=replace(LATENT, q_rank=None),
        moe=replace(V3_ROUTING, score="softmax", normalise=False, bias_rate=0.0),
    ),
    "deepseek_v2_yarn": replace(
        DEEPSEEK,
        family="deepseek_v2",
        rope_scaling=YARN,
        moe=replace(V3_ROUTING, score="softmax", normalise=False, bias_rate=0.0, groups=1, active_groups=1),
    ),
    "deepseek_v3": DEEPSEEK,
    "deepseek_v3_yarn": replace(DEEPSEEK, rope_scaling=YARN, latent=replace(LATENT, q_rank=None)),
    "deepseek_v2_linear": replace(
        DEEPSEEK,
        family="deepseek_v2",
        rope_scaling=RopeScaling(kind="linear", factor=2.0, mscale_all_dim=1.3),
        moe=replace(V3_ROUTING, score="softmax", normalise=False, bias_rate=0.0),
    ),
    "deepseek_v3_linear": replace(DEEPSEEK, rope_scaling=RopeScaling(kind="linear", factor=2.0, mscale_all_dim=1.3)),
    "deepseek_v3_llama3": replace(
        DEEPSEEK,
        rope_theta=100.0,
        rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_positions=32, mscale_all_dim=0.7),
    ),
    "deepseek_v3_dense": replace(DEEPSEEK, moe=None),
}
"""One of each family at the least; the names begin with the family's."""

IDS = torch.randint(96, (2, 17), generator=torch.Generator().manual_seed(0))


def made(config: ModelConfig, *, seed: int = 1) -> Decoder:
    """A decoder whose norms, biases and routers are not what a fresh one has: a weight that is not read would show."""
    model = build(config, seed=seed)
    with torch.no_grad():
        for name, value in sorted(model.state_dict().items()):
            draw = torch.Generator().manual_seed(len(name) + value.numel())
            if name.endswith("bias"):
                value.normal_(0.0, 0.3, generator=draw)
            elif value.dim() == 1:
                value.uniform_(0.5, 1.5, generator=draw)
            elif "router" in name:  # far apart, so that rounding never decides who is chosen
                value.normal_(0.0, 1.0, generator=draw)
    return model


def theirs(folder: Path, **options: Any) -> Any:
    """The model of `transformers` in a folder, in its own dtype."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": "auto", "attn_implementation": "eager"} | options)


def our_logits(model: Decoder, ids_BT: Tensor = IDS) -> Tensor:
    positions = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    return model.logits(model(ids_BT, positions, None))
