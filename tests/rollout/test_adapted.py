"""A decoder with an adapter is sampled as the merged decoder is, whatever decodes, and anew after every change."""

import pytest
import torch
from tests.model.adapted import adapted, lora
from tests.rollout.decoder.test_fused import made
from tests.rollout.sampled import completions, prompts

from lifecycle.model import Decoder
from lifecycle.model.adapters import adapter_off, plain_weights
from lifecycle.rollout import Engine
from lifecycle.rollout.decoder.backend import AsItIs, Joined, prepare
from lifecycle.rollout.decoder.fused import SLOWER, SOURCE, Fused
from lifecycle.rollout.decoder.joined_matrices import numbers_to_join
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.system.native.c_library import library

GREEDY = Sampling(max_new_tokens=12, temperature=0.0)
NAMES = ("plain", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3")


def merged(model: Decoder) -> Decoder:
    plain = Decoder(model.config)
    plain.load_state_dict(plain_weights(model))
    return plain


def words(model: Decoder | Engine) -> list[list[int]]:
    engine = model if isinstance(model, Engine) else Engine(model)
    return list(completions(engine.generate(prompts(3), GREEDY, seed=0)).values())


@pytest.mark.parametrize("name", NAMES)
def test_greedy_words_are_those_of_the_merged_model(name: str) -> None:
    model = adapted(made(name))
    assert words(model) == words(merged(model)) != words(made(name))


@pytest.mark.skipif(library(SOURCE, SLOWER) is None, reason="needs a C compiler")
@pytest.mark.parametrize("name", ["plain", "deepseek_v3"])
def test_it_is_decoded_by_one_call_a_token(name: str) -> None:
    assert isinstance(prepare(adapted(made(name)), rows=4, dtype=torch.float32)[1], Fused)
    assert isinstance(prepare(adapted(made("plain")), rows=4, dtype=torch.float32, cache=torch.float64)[1], Joined)
    assert isinstance(
        prepare(adapted(made(name)), rows=4, dtype=torch.float32, cache=torch.float64)[1], AsItIs | Joined
    )


@pytest.mark.parametrize("name", ["plain", "deepseek_v3"])
def test_whether_it_is_joined_and_recorded_hangs_on_the_model_that_is_decoded(name: str) -> None:
    model = adapted(made(name))
    ready, _ = prepare(model, rows=4, dtype=torch.float32)
    assert numbers_to_join(model) == numbers_to_join(ready) == numbers_to_join(made(name))


def test_in_half_precision_too() -> None:
    model = adapted(made("plain"))
    with torch.autocast("cpu", torch.bfloat16):
        assert words(model) == words(merged(model))


def test_a_step_of_training_is_sampled_from_and_so_is_the_model_without_its_adapter() -> None:
    model = adapted(made("plain"))
    engine = Engine(model)
    first = words(engine)
    optimizer = torch.optim.SGD(model.trained_parameters(), lr=0.5)
    model(torch.arange(8)[None], torch.arange(8)[None]).square().sum().backward()
    optimizer.step()
    assert words(engine) == words(merged(model)) != first
    with adapter_off(model):
        assert words(engine) == words(made("plain"))
    assert words(engine) == words(merged(model))


def test_dora_is_merged_too() -> None:
    model = adapted(made("qwen2"), lora(dora=True))
    assert words(model) == words(merged(model))


def test_dropout_in_training_is_not_in_what_is_sampled() -> None:
    model = adapted(made("qwen2"), lora(dropout=0.5)).train()
    assert words(model) == words(merged(model))
    assert all(module.training for module in model.modules())
