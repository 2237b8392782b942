"""Rotary frequencies and factors are those of `transformers` for every way to stretch them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.model.variants import DEEPSEEK, LLAMA, YARN
from transformers import DeepseekV3Config, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lifecycle.model import ModelConfig, RopeScaling
from lifecycle.model.layers.rope import attention_factor, rotary_angles, rotary_frequencies, rotate, softmax_scale

CPU = torch.device("cpu")
LONG = replace(LLAMA, head_dim=64, rope_theta=5e5, max_positions=8192)


def theirs(config: ModelConfig, kind: str, **values: Any) -> tuple[torch.Tensor, float]:
    rope = {"rope_type": kind, "rope_theta": config.rope_theta, **values}
    other = LlamaConfig(head_dim=config.head_dim, max_position_embeddings=config.max_positions, rope_parameters=rope)
    return ROPE_INIT_FUNCTIONS[kind](other, CPU)


def test_the_frequencies_of_an_unstretched_model_are_the_formula() -> None:
    wanted = [1e4 ** (-2 * i / 8) for i in range(4)]
    assert rotary_frequencies(LLAMA, CPU).tolist() == pytest.approx(wanted)
    half = rotary_frequencies(replace(LLAMA, family="glm4_moe", rotary_share=0.5), CPU)
    assert half.tolist() == pytest.approx([1.0, 1e-2])


def test_linear_and_llama3_are_those_of_transformers() -> None:
    linear = replace(LONG, rope_scaling=RopeScaling(kind="linear", factor=4.0))
    torch.testing.assert_close(rotary_frequencies(linear, CPU), theirs(LONG, "linear", factor=4.0)[0])
    values = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 = replace(LONG, rope_scaling=RopeScaling(kind="llama3", original_positions=1024, **values))
    wanted, _ = theirs(LONG, "llama3", original_max_position_embeddings=1024, **values)
    torch.testing.assert_close(rotary_frequencies(llama3, CPU), wanted)
    assert attention_factor(linear.rope_scaling) == attention_factor(llama3.rope_scaling) == 1.0


def test_ntk_stretches_the_slowest_pair_by_the_factor_and_leaves_the_fastest() -> None:
    found = rotary_frequencies(replace(LONG, rope_scaling=RopeScaling(kind="ntk", factor=4.0)), CPU)
    plain = rotary_frequencies(LONG, CPU)
    assert float(found[0]) == 1.0 and float(plain[-1] / found[-1]) == pytest.approx(4.0, rel=1e-5)
    # their dynamic kind at the length where its base has grown by the same factor
    rope = {"rope_type": "dynamic", "rope_theta": LONG.rope_theta, "factor": 4.0}
    other = LlamaConfig(head_dim=64, max_position_embeddings=8192, rope_parameters=rope)
    wanted, _ = ROPE_INIT_FUNCTIONS["dynamic"](other, CPU, seq_len=8192 * 7 // 4)  # 4 * 7 / 4 - 3 = 4
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "extra",
    [{}, {"mscale": 1.0, "mscale_all_dim": 0.7}, {"attention_factor": 1.3}, {"beta_fast": 16.0, "beta_slow": 2.0}],
)
def test_yarn_is_that_of_transformers(extra: dict[str, float]) -> None:
    scaling = RopeScaling(kind="yarn", factor=8.0, original_positions=1024, **extra)
    wanted, factor = theirs(LONG, "yarn", factor=8.0, original_max_position_embeddings=1024, **extra)
    torch.testing.assert_close(rotary_frequencies(replace(LONG, rope_scaling=scaling), CPU), wanted)
    assert attention_factor(scaling) == pytest.approx(factor)


def test_a_stretched_latent_attention_sharpens_its_softmax_as_theirs_does() -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 0.7,
        "mscale_all_dim": 0.5,
    }
    other = DeepseekV3Config(qk_nope_head_dim=6, qk_rope_head_dim=4, rope_parameters=rope)
    found = softmax_scale(replace(DEEPSEEK, rope_scaling=YARN))
    assert found == pytest.approx(DeepseekV3Attention(other, 0).scaling)
    assert softmax_scale(DEEPSEEK) == 10**-0.5


def test_a_share_of_the_head_turns_and_the_rest_stands_still() -> None:
    half = replace(LLAMA, family="glm4_moe", rotary_share=0.5)
    x = torch.randn(1, 5, 2, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, *rotary_angles(torch.arange(5)[None], half))
    assert torch.equal(turned[..., 4:], x[..., 4:])
    narrow = rotate(x[..., :4], *rotary_angles(torch.arange(5)[None], replace(LLAMA, head_dim=4)))
    assert torch.equal(turned[..., :4], narrow)
