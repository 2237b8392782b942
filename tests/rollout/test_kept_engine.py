"""An engine that stays draws what a new one draws, records nothing again, and is gone where it is to go."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.rehearsal.claims import Device, rehearsal
from tests.rollout.sampled import CONFIG, prompts, settings
from tests.rollout.tape import Tape

from lifecycle.batch import Rollout
from lifecycle.model import Decoder, build
from lifecycle.rollout import Engine
from lifecycle.rollout.kept_engine import KeptEngine

CUDA = torch.device("cuda")


@pytest.fixture
def device() -> Iterator[Device]:
    with rehearsal() as made:
        yield made


@pytest.fixture
def recorded(device: Device, monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """The graphs of a rehearsed GPU."""
    made: list[Tape] = []

    def new() -> Tape:
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new)
    return made


def drawn(kept: KeptEngine, model: Decoder, seed: int = 0, **changes: Any) -> Rollout:
    with kept.of(model, slots=8) as engine:
        return engine.generate(prompts(5), settings(max_new_tokens=20, samples=2, **changes), seed=seed)


@torch.no_grad()
def update(model: Decoder) -> None:
    for weight in model.parameters():
        weight.mul_(1.05)
    model.weights_changed()


def test_steps_of_a_run_are_recorded_once(recorded: list[Tape]) -> None:
    """With other settings in between, as a validation has them."""
    model, kept, per_step = build(CONFIG, seed=1, device=CUDA), KeptEngine(None), []
    for step in range(5):
        wanted, before = drawn(KeptEngine(False), model, seed=step), len(recorded)
        found = drawn(kept, model, seed=step)
        per_step.append(len(recorded) - before)
        assert torch.equal(found.token_ids, wanted.token_ids) and torch.equal(found.logprobs, wanted.logprobs)
        drawn(kept, model, temperature=0.0)
        update(model)
    assert per_step[0] == per_step[1] > 0 == sum(per_step[2:])


def test_weights_in_other_places_are_recorded_again(recorded: list[Tape]) -> None:
    model, kept = build(CONFIG, seed=1, device=CUDA), KeptEngine(True)
    drawn(kept, model)
    first = len(recorded)
    other = build(CONFIG, seed=2, device=CUDA)
    for weight, new in zip(model.parameters(), other.parameters(), strict=True):
        weight.data = new.data
    model.weights_changed()
    found = drawn(kept, model)
    assert len(recorded) == 2 * first
    assert torch.equal(found.token_ids, drawn(KeptEngine(False), other).token_ids)


def test_it_goes_where_an_update_had_no_room_beside_it(recorded: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept, gb = build(CONFIG, seed=1, device=CUDA), KeptEngine(None), 1 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 80 * gb))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 10 * gb)  # what it takes
    stays = []
    for peak in (12, 63, 63, 71, 73, 61):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_, peak=peak: peak * gb)
        drawn(kept, model)
        stays.append(kept._engine is not None)
        update(model)
    # not before an update; 63 alone and 10 are too much; so are 71 and 10; and so on
    assert stays == [False, False, False, False, False, True]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 71 * gb)  # with the engine
    drawn(kept, model)
    assert kept._engine is not None
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 73 * gb)
    drawn(kept, model)
    assert kept._engine is None


@pytest.mark.parametrize("keep", [None, False])
def test_it_frees_its_cache_at_once_where_it_does_not_stay(keep: bool | None) -> None:
    model, kept = build(CONFIG, seed=1), KeptEngine(keep)
    with kept.of(model, slots=4) as engine:
        engine.generate(prompts(2), settings(), seed=0)
        step = engine._step
        assert step is not None
        held = weakref.ref(step.cache)
    gc.disable()
    try:
        del engine, step
        assert held() is None
    finally:
        gc.enable()


def test_another_model_has_an_engine_of_its_own_and_a_fault_leaves_none() -> None:
    kept, models = KeptEngine(True), [build(CONFIG, seed=seed) for seed in (1, 2)]
    for model in models:
        wanted = Engine(model, slots=8).generate(prompts(5), settings(max_new_tokens=20, samples=2), seed=0)
        assert torch.equal(drawn(kept, model).token_ids, wanted.token_ids)
    with pytest.raises(ZeroDivisionError), kept.of(models[1], slots=8):
        raise ZeroDivisionError
    assert kept._engine is None
