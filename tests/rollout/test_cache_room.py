"""A cache takes what its call needs, grows with its rows and changes no draw by it, and is asked for beforehand."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.model.variants import VARIANTS
from tests.rollout.sampled import CONFIG, mismatch, prompts, settings

from lifecycle.errors import UserError
from lifecycle.model import Cache, ModelConfig, build
from lifecycle.rollout import Engine, cache_room
from lifecycle.rollout.cache_room import Room, bucket

LONG = replace(CONFIG, max_positions=1024)


def cache_of(engine: Engine) -> Cache:
    assert engine._step is not None and engine._step.cache is not None
    return engine._step.cache


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("config", [LONG, replace(VARIANTS["deepseek_v3"], max_positions=1024)], ids=["gqa", "latent"])
def test_a_cache_that_grows_draws_what_one_of_full_size_draws(
    config: ModelConfig, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked, sampling = build(config, seed=1), prompts(3), settings(max_new_tokens=150, top_k=20, samples=2)
    engine = Engine(model, slots=8, deterministic=deterministic)
    found = engine.generate(asked, sampling, seed=0)
    assert cache_of(engine).capacity == bucket(170)
    monkeypatch.setattr(cache_room, "FIRST", 10_000)
    wanted = Engine(model, slots=8, deterministic=deterministic).generate(asked, sampling, seed=0)
    assert torch.equal(found.token_ids, wanted.token_ids) and torch.equal(found.logprobs, wanted.logprobs)
    assert mismatch(model, found, sampling) < 2e-5


def test_one_short_prompt_takes_one_row_and_few_positions() -> None:
    engine = Engine(build(LONG, seed=1), slots=32)
    stream = engine.stream([[1, 2, 3]], settings(max_new_tokens=1000), seed=0)
    next(stream)
    assert (cache_of(engine).rows, cache_of(engine).capacity) == (1, 128)
    stream.close()
    engine.generate([[1, 2, 3]] * 5, settings(max_new_tokens=4), seed=0)
    assert (cache_of(engine).rows, cache_of(engine).capacity) == (8, 64)


def test_the_old_cache_is_let_go_before_there_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(build(LONG, seed=1), slots=4)
    engine.generate(prompts(4), settings(max_new_tokens=4), seed=0)
    old, real = weakref.ref(cache_of(engine).keys[0]), Cache.empty

    def empty(*args: Any, **how: Any) -> Cache:
        assert old() is None
        return real(*args, **how)

    monkeypatch.setattr(Cache, "empty", empty)
    engine.generate([[1] * 500], settings(max_new_tokens=4), seed=0)
    assert cache_of(engine).capacity >= 504


def test_a_call_that_might_not_fit_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(LONG, seed=1)
    engine, asked = Engine(model, slots=4), prompts(4)
    wanted = engine.generate(asked, settings(), seed=0)
    row = Cache.position_bytes(LONG, torch.float32) * (bucket(1000 + 20) + 1)
    monkeypatch.setattr(cache_room, "free_bytes", lambda _: 2 * row)
    with pytest.raises(
        UserError, match=r"4 sequences of up to 1,024 positions need .* GB are free on cpu: lower slots to 2"
    ):
        engine.generate([[1] * 20] * 4, settings(max_new_tokens=1000), seed=0)
    assert torch.equal(engine.generate(asked, settings(), seed=0).token_ids, wanted.token_ids)
    monkeypatch.setattr(cache_room, "free_bytes", lambda _: None)
    engine.generate(asked, settings(), seed=0)


def test_free_memory_is_that_of_the_container_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:   800 kB\n")
    monkeypatch.setattr(cache_room, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(cache_room, "GROUP", tmp_path)
    assert cache_room.free_bytes(torch.device("cpu")) == 800 * 1024
    for name, text in {
        "memory.max": "max",
        "memory.current": "5000",
        "memory.stat": "file 9\ninactive_file 2000\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert cache_room.free_bytes(torch.device("cpu")) == 800 * 1024
    (tmp_path / "memory.max").write_text("100000\n")
    assert cache_room.free_bytes(torch.device("cpu")) == 97_000


def test_room_grows_by_half_and_never_past_what_is_needed() -> None:
    asked = Room.of(sequences=5, slots=6, prompt=10, longest=700)
    assert (asked.rows, asked.now, asked.most) == (6, 128, 768)
    assert [asked.after(128, 129), asked.after(512, 513), asked.after(128, 700)] == [192, 768, 768]
