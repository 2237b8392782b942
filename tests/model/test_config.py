"""Sizes are checked together, and counted exactly."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from tests.model.variants import LATENT, SIGMOID, SOFTMAX, VARIANTS
from tests.toy import toy

from lifecycle.config.signature import Walk
from lifecycle.errors import UserError
from lifecycle.model import Decoder, ModelConfig, RopeScaling

TINY = toy(init_std=0.02)
QWEN = replace(TINY, family="qwen3", qk_norm=True, tied_head=False)


def counted(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Decoder(config).parameters())


@pytest.mark.parametrize("config", [TINY, QWEN, replace(TINY, head_dim=10)], ids=["llama", "qwen3", "narrow"])
def test_parameters_are_those_of_the_network(config: ModelConfig) -> None:
    assert config.parameters() == config.active_parameters() == counted(config)


def test_flops_are_six_for_each_multiplied_parameter_and_twelve_for_attention() -> None:
    attention = 12 * 2 * 32 * 100  # layers, width of all heads, row length
    assert TINY.flops_per_token(100) == 6 * TINY.parameters() + attention
    # the input embedding of an untied model is looked up, not multiplied; the head counts in both
    assert QWEN.flops_per_token(100) == 6 * (QWEN.parameters() - 96 * 24) + attention


def test_the_vocabulary_is_the_tokenizers_rounded_up_to_64_unless_stated() -> None:
    waiting = replace(TINY, vocab_size=None)
    assert [waiting.with_vocab(n).vocab_size for n in (1, 64, 65, 8192)] == [64, 64, 128, 8192]
    assert TINY.with_vocab(90) is TINY
    with pytest.raises(UserError, match="vocab_size is 96, but the tokenizer has 97 tokens"):
        TINY.with_vocab(97)
    with pytest.raises(UserError, match="vocab_size is null"):
        waiting.parameters()


def test_all_faults_come_in_one_error() -> None:
    with pytest.raises(UserError) as caught:
        replace(TINY, layers=0, kv_heads=3, head_dim=7, qk_norm=True)
    said = str(caught.value)
    assert "model.layers is 0; it must be above 0" in said
    assert "model.heads is 4 and model.kv_heads is 3" in said
    assert "model.head_dim is 7; it must be even" in said
    assert "set model.qk_norm=false" in said


def test_an_unknown_family_is_named_with_those_known() -> None:
    with pytest.raises(UserError, match="'gpt2'; choose one of deepseek_v2, deepseek_v3"):
        replace(TINY, family="gpt2")
    with pytest.raises(UserError, match="'lama'.*: type model.family=llama"):
        replace(TINY, family="lama")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_combination_is_counted_exactly(name: str) -> None:
    config = VARIANTS[name]
    assert config.parameters() == counted(config)
    if config.moe is None:
        assert config.active_parameters() == config.parameters()
        return
    idle = sum(
        (moe.experts - moe.active) * 3 * moe.ffn_width * config.width
        for moe in map(config.experts_of, range(config.layers))
        if moe is not None
    )
    assert config.active_parameters() == config.parameters() - idle
    assert config.flops_per_token(10) < 6 * config.parameters() + 12 * 3 * config.attention_width * 10


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"sliding_window": 4}, "model.sliding_window is 4, but family llama"),
        ("llama", {"moe": SOFTMAX}, "family llama does not have model.moe; set model.moe=null"),
        ("llama", {"latent": LATENT}, "with model.latent it is nope_dim + rope_dim = 10"),
        ("mistral", {"sliding_from": 1}, "set model.sliding_from=0"),
        ("qwen2", {"sliding_from": 99}, "leave a block for the sliding window, or set model.sliding_window=null"),
        ("qwen2", {"qkv_bias": False}, "set model.qkv_bias=true"),
        ("mixtral", {"moe": None}, "family mixtral always has model.moe"),
        ("mixtral", {"moe": replace(SOFTMAX, bias_rate=0.1)}, "set model.moe.bias_rate=0.0"),
        ("qwen2_moe", {"moe": SOFTMAX}, "set model.moe.shared_gate=true"),
        ("qwen3_moe", {"moe": replace(SOFTMAX, first_dense=3)}, "leave a block for the experts"),
        ("glm4_moe", {"rotary_share": 0.1}, "turns 0 of a head's 8 dimensions"),
        ("deepseek_v3", {"sliding_window": 4}, "model.latent is built without it"),
        ("deepseek_v3", {"kv_heads": 2}, "with model.latent every head has its own: 4"),
        ("deepseek_v2", {"moe": SIGMOID}, "set model.moe.score=softmax"),
    ],
)
def test_a_switch_that_the_family_has_not_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(VARIANTS[name], **changes)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: replace(SOFTMAX, active=7), "active is 7 of 6 experts"),
        (lambda: replace(SOFTMAX, groups=4), "groups must divide them evenly"),
        (lambda: replace(SIGMOID, active=5), "2 groups hold 4"),
        (lambda: replace(SOFTMAX, shared_gate=True), "shared is 0"),
        (lambda: replace(LATENT, rope_dim=3), "rope_dim is 3; it must be even"),
        (lambda: RopeScaling(kind="yarn", factor=0.5), "factor is 0.5; it must be at least 1"),
        (lambda: RopeScaling(kind="ntk", factor=2.0, mscale_all_dim=0.5), "ntk is built without: set it to null"),
        (lambda: RopeScaling(kind="llama3", factor=2.0), "llama3 wants that before the scaling"),
    ],
)
def test_parts_of_a_config_list_their_own_faults(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert said in str(caught.value)


def test_nested_parts_are_read_from_plain_mappings() -> None:
    plain = {f.name: getattr(TINY, f.name) for f in fields(TINY)}
    experts = {"experts": 6, "active": 2, "ffn_width": 16}
    scaling = {"kind": "linear", "factor": 2}
    node = plain | {"family": "mixtral", "moe": experts, "rope_scaling": scaling}
    walk = Walk()
    made = walk.construct(ModelConfig, node, ("model",))
    assert not walk.faults
    assert made == replace(TINY, family="mixtral", moe=SOFTMAX, rope_scaling=RopeScaling(kind="linear", factor=2.0))
    walk.construct(ModelConfig, node | {"moe": experts | {"actve": 3}}, ("model",))
    assert len(walk.faults) == 1 and walk.faults[0].endswith("did you mean model.moe.active? Type model.moe.active=3")
