"""Small decoders, one for each switch, that several tests of the network go through."""

from dataclasses import replace

from tests.toy import toy

from lifecycle.model import Latent, MoE, RopeScaling

LLAMA = toy(layers=3)
LATENT = Latent(kv_rank=12, nope_dim=6, rope_dim=4, v_dim=8, q_rank=10)
SOFTMAX = MoE(experts=6, active=2, ffn_width=16)
SIGMOID = MoE(
    experts=8,
    active=2,
    ffn_width=16,
    shared=2,
    first_dense=1,
    score="sigmoid",
    scale=1.5,
    groups=4,
    active_groups=2,
    bias_rate=0.01,
    balance=0.01,
)
DEEPSEEK = replace(LLAMA, family="deepseek_v3", kv_heads=4, head_dim=10, latent=LATENT, moe=SIGMOID)
V2 = replace(SIGMOID, score="softmax", normalise=False, bias_rate=0.0)
YARN = RopeScaling(kind="yarn", factor=4.0, original_positions=16, mscale=0.7, mscale_all_dim=0.5)
GATED = replace(SOFTMAX, shared=1, shared_ffn_width=20, shared_gate=True, normalise=False)

VARIANTS = {
    "llama": LLAMA,
    "untied": replace(LLAMA, tied_head=False),
    "mistral": replace(LLAMA, family="mistral", sliding_window=5),
    "qwen2": replace(LLAMA, family="qwen2", qkv_bias=True, sliding_window=4, sliding_from=1),
    "qwen3": replace(LLAMA, family="qwen3", qk_norm=True),
    "softcap": replace(LLAMA, logit_softcap=3.0),
    "mixtral": replace(LLAMA, family="mixtral", moe=SOFTMAX),
    "qwen2_moe": replace(LLAMA, family="qwen2_moe", qkv_bias=True, moe=GATED),
    "qwen3_moe": replace(LLAMA, family="qwen3_moe", qk_norm=True, moe=replace(SOFTMAX, first_dense=1)),
    "glm4_moe": replace(LLAMA, family="glm4_moe", qk_norm=True, qkv_bias=True, rotary_share=0.5, moe=SIGMOID),
    "deepseek_v2": replace(DEEPSEEK, family="deepseek_v2", moe=V2),
    "deepseek_v3": DEEPSEEK,
    "plain_queries": replace(DEEPSEEK, latent=replace(LATENT, q_rank=None, v_dim=14), moe=None),
    "yarn": replace(DEEPSEEK, rope_scaling=YARN),
    "llama3": replace(LLAMA, rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_positions=16)),
}
