"""The engine in other precisions, compiled and as recorded graphs: the same draws, or as near as rounding allows."""

from dataclasses import replace

import pytest
import torch
from tests.model.variants import VARIANTS
from tests.rollout.sampled import CONFIG, mismatch, prompts, settings

from lifecycle.errors import UserError
from lifecycle.model import Decoder, build, compile_model
from lifecycle.rollout import Engine, generate
from lifecycle.rollout.decoder.backend import Cast


@pytest.fixture(scope="module")
def model() -> Decoder:
    return build(CONFIG, seed=1)


def test_under_autocast_and_in_bf16_it_agrees_with_a_pass_of_that_precision(model: Decoder) -> None:
    sampling, asked = settings(top_k=10), prompts(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine = Engine(model, slots=4)
        cast = engine.generate(asked, sampling, seed=0)
        again = engine.generate(asked, sampling, seed=0)
        worst = mismatch(model, cast, sampling)
    assert torch.equal(cast.token_ids, again.token_ids)
    half = build(CONFIG, seed=1).bfloat16()
    rollout = generate(half, asked, sampling, seed=0)
    print(f"\ngreatest difference: autocast {worst:.1e}, bf16 weights {mismatch(half, rollout, sampling):.1e}")
    assert worst < 0.15 and mismatch(half, rollout, sampling) < 0.15


@pytest.mark.parametrize("family", ["plain", "deepseek_v3"])
def test_autocast_decodes_as_weights_of_its_dtype_would(family: str) -> None:
    weights, sampling, asked = build(VARIANTS[family] if family in VARIANTS else CONFIG, seed=1), settings(), prompts(6)
    cast = Cast(weights, torch.bfloat16).model
    wanted, full = generate(cast, asked, sampling, seed=0), generate(weights, asked, sampling, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = generate(weights, asked, sampling, seed=0)
    assert torch.equal(found.logprobs, wanted.logprobs) and not torch.equal(found.logprobs, full.logprobs)


def test_experts_under_autocast_agree_too() -> None:
    kind = build(VARIANTS["deepseek_v3"], seed=1)
    sampling = settings(top_k=10, max_new_tokens=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rollout = generate(kind, prompts(4, longest=14), sampling, seed=0)
        assert mismatch(kind, rollout, sampling) < 0.3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch imports it
def test_compiled_steps_draw_the_same(model: Decoder) -> None:
    sampling, asked = settings(top_k=10, samples=2), prompts(4)
    wanted = generate(model, asked, sampling, seed=0)
    engine = Engine(model, slots=8, compiled=True)
    assert torch.equal(engine.generate(asked, sampling, seed=0).token_ids, wanted.token_ids)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_model_that_was_compiled_for_training_is_not_compiled_again() -> None:
    trained = build(replace(CONFIG, family="qwen3", qk_norm=True), seed=1)
    wanted = generate(trained, prompts(4), settings(), seed=0)
    compile_model(trained, unit="block")
    found = generate(trained, prompts(4), settings(), seed=0)
    assert torch.equal(found.token_ids, wanted.token_ids)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_graphs_draw_what_eager_steps_draw() -> None:
    device = torch.device("cuda")
    kind, sampling, asked = build(CONFIG, seed=1, device=device), settings(top_k=10, samples=3), prompts(9)
    wanted = Engine(kind, slots=8, graphs=False).generate(asked, sampling, seed=0)
    engine = Engine(kind, slots=8, graphs=True)
    for _ in range(2):
        found = engine.generate(asked, sampling, seed=0)
        same = sum(found.completion(row) == wanted.completion(row) for row in range(len(wanted)))
        assert same >= len(wanted) - 1
    alone, many = (generate(kind, asked, sampling, seed=0, slots=slots, deterministic=True) for slots in (1, 8))
    assert torch.equal(alone.token_ids, many.token_ids) and torch.equal(alone.logprobs, many.logprobs)


def test_experts_of_a_cpu_are_not_recorded() -> None:
    engine = Engine(build(VARIANTS["mixtral"], seed=1), graphs=True)
    with pytest.raises(UserError, match="experts multiply one after the other on cpu. Leave graphs out"):
        engine.generate(prompts(1), settings(), seed=0)
