"""Sizes are checked together, and counted exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from lifecycle.errors import UserError
from lifecycle.model import Decoder, ModelConfig

SIZES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))

TINY = ModelConfig(
    family="llama",
    layers=2,
    width=24,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn_width=40,
    vocab_size=96,
    max_positions=64,
    rope_theta=1e4,
    norm_eps=1e-5,
    qk_norm=False,
    tied_head=True,
    init_std=0.02,
)
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
    with pytest.raises(UserError, match="'gpt2'; choose one of llama, qwen3"):
        replace(TINY, family="gpt2")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", SIZES, ids=lambda path: path.stem)
def test_the_shipped_sizes_are_what_their_headers_say(path: Path) -> None:
    text = path.read_text()
    values = yaml.safe_load(text)
    assert values.pop("_target_") == "lifecycle.model.ModelConfig"
    values |= {key: float(values[key]) for key in ("rope_theta", "norm_eps", "init_std")}
    config = ModelConfig(**values)
    vocab = config.vocab_size or {"tiny": 2048, "minimind_26m": 6400, "minimind_104m": 6400}.get(path.stem, 50_304)
    full = replace(config, vocab_size=vocab)
    assert f"{full.parameters():,} parameters" in text.splitlines()[0]
    assert counted(full) == full.parameters()
    assert path.stem != "tiny" or full.parameters() <= 5_000_000
