"""An engine that is kept samples with the weights that the model has now, whoever changed them and however."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.rollout.sampled import CONFIG, mismatch, prompts, settings

from lifecycle.model import Decoder, build
from lifecycle.optim import AdamW, Muon
from lifecycle.rollout import Engine, generate
from lifecycle.rollout.weights_version import Version

Change = Callable[[Decoder], object]


def stepped(make: Callable[[Decoder], torch.optim.Optimizer], *, compiled: bool = False) -> Change:
    def change(model: Decoder) -> None:
        optimizer = make(model)
        model.logits(model(torch.tensor([[1, 2, 3]]), torch.arange(3)[None])).square().mean().backward()
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        step()

    return change


def adamw(model: Decoder) -> torch.optim.Optimizer:
    ours = AdamW(lr=0.02, embedding_lr=None, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, grad_clip=None)
    made = ours.build(model)
    assert made.defaults["fused"]
    return made


def muon(model: Decoder) -> torch.optim.Optimizer:
    return Muon(
        lr=0.02,
        adamw_lr=None,
        embedding_lr=None,
        weight_decay=0.1,
        momentum=0.95,
        nesterov=True,
        newton_schulz_steps=5,
        scale="match_rms_adamw",
        betas=(0.9, 0.95),
        eps=1e-8,
        grad_clip=None,
    ).build(model)


def torchs(*, fused: bool = False, foreach: bool = False) -> Callable[[Decoder], torch.optim.Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=0.02, fused=fused, foreach=foreach)


def other_weights() -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in build(CONFIG, seed=9).state_dict().items()}


@torch.no_grad()
def averaged(model: Decoder) -> None:
    torch._foreach_lerp_(list(model.parameters()), list(build(CONFIG, seed=9).parameters()), 0.3)


@torch.inference_mode()
def one_norm(model: Decoder) -> None:
    model.norm.weight.mul_(0.9)


@torch.no_grad()
def one_row(model: Decoder) -> None:
    model.embedding.weight[3] += 1


def another_base(model: Decoder) -> None:
    model.config = replace(model.config, rope_theta=7.0)


CHANGES: dict[str, Change] = {
    "AdamW of the project, fused": stepped(adamw),
    "Muon of the project": stepped(muon),
    "fused": stepped(torchs(fused=True)),
    "foreach": stepped(torchs(foreach=True)),
    "one by one": stepped(torchs()),
    "compiled": stepped(torchs(foreach=True), compiled=True),
    "load_state_dict": lambda model: model.load_state_dict(other_weights()),
    "load_state_dict by assignment": lambda model: model.load_state_dict(other_weights(), assign=True),
    "a moving average": averaged,
    "one norm": one_norm,
    "one row": one_row,
    "the rotary base": another_base,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # in torch, at the first compilation
def test_a_kept_engine_samples_with_the_present_weights(name: str) -> None:
    model, asked, sampling = build(CONFIG, seed=1), prompts(3), settings(top_k=30)
    engine = Engine(model, slots=3)
    before = engine.generate(asked, sampling, seed=0)
    for _ in range(2):
        CHANGES[name](model)
        kept, fresh = engine.generate(asked, sampling, seed=0), generate(model, asked, sampling, seed=0, slots=3)
        assert torch.equal(kept.token_ids, fresh.token_ids) and torch.equal(kept.logprobs, fresh.logprobs)
        assert not torch.equal(kept.logprobs, before.logprobs)
        assert mismatch(model, kept, sampling) < 1e-5


@pytest.mark.parametrize("how", [{"deterministic": True}, {"dtype": torch.bfloat16}], ids=str)
def test_every_layout_of_the_weights_is_made_anew(how: dict[str, bool]) -> None:
    model, asked, sampling = build(CONFIG, seed=2), prompts(3), settings()
    engine = Engine(model, slots=3, **how)  # type: ignore[arg-type]
    for _ in range(3):
        kept = engine.generate(asked, sampling, seed=0)
        assert torch.equal(kept.logprobs, Engine(model, slots=3, **how).generate(asked, sampling, seed=0).logprobs)  # type: ignore[arg-type]
        stepped(adamw)(model)


def test_the_copy_that_autocast_would_make_is_made_anew() -> None:
    model, asked, sampling = build(CONFIG, seed=2), prompts(3), settings()
    engine = Engine(model, slots=3)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            kept = engine.generate(asked, sampling, seed=0)
            assert torch.equal(kept.logprobs, generate(model, asked, sampling, seed=0, slots=3).logprobs)
            stepped(adamw)(model)


@pytest.mark.parametrize("way", ["data", "numpy"])
def test_a_change_without_notice_is_found_and_warned_of(way: str, caplog: pytest.LogCaptureFixture) -> None:
    model, asked, sampling = build(CONFIG, seed=2), prompts(3), settings()
    engine = Engine(model, slots=3)
    engine.generate(asked, sampling, seed=0)
    weight = model.get_parameter("blocks.0.ffn.down_proj.weight")
    if way == "data":
        weight.data.mul_(1.5)
    else:
        weight.detach().numpy()[:] *= 1.5
    with caplog.at_level(logging.WARNING):
        kept = engine.generate(asked, sampling, seed=0)
    assert torch.equal(kept.logprobs, generate(model, asked, sampling, seed=0, slots=3).logprobs)
    assert "call model.weights_changed()" in caplog.text


def test_a_small_change_is_seen_when_it_is_said() -> None:
    model = build(CONFIG, seed=2)
    before = Version.of(model)
    model.embedding.weight.data[1, 5] += 1  # beside the numbers that are looked at
    assert Version.of(model).surely_is(before)
    model.weights_changed()
    assert not Version.of(model).surely_is(before)


def test_a_rollout_says_which_weights_drew_it() -> None:
    model = build(CONFIG, seed=2)
    model.load_state_dict(other_weights())
    assert generate(model, [[1]], settings(), seed=0).weights_version == model.weights_version == 1
    assert generate(model, [[1]], settings(), seed=0, weights_version=40).weights_version == 40
