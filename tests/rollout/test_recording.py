"""Recorded steps, on a tape in place of CUDA's graphs: they draw what eager steps draw, and hold what was compiled."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from tests.model.variants import VARIANTS
from tests.rollout.sampled import CONFIG, prompts, settings
from tests.rollout.tape import Tape, tapes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lifecycle.model import build
from lifecycle.rollout import Engine, Sampling
from lifecycle.rollout.output import Collected

__all__ = ["tapes"]

LONG = replace(CONFIG, max_positions=512)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "softcap", "plain_queries"])
def test_recorded_steps_draw_what_eager_steps_draw(name: str, tapes: list[Tape]) -> None:
    model, asked = build(VARIANTS[name], seed=1), prompts(5)
    eager, recorded = Engine(model, slots=4, graphs=False), Engine(model, slots=4, graphs=True)
    for sampling in (
        settings(top_k=10, samples=2),
        settings(top_p=0.8, min_p=0.01, repetition_penalty=1.2, banned_ids=(1, 2)),
        settings(temperature=0),
    ):
        wanted, found = (engine.generate(asked, sampling, seed=0) for engine in (eager, recorded))
        assert torch.equal(found.token_ids, wanted.token_ids)
        torch.testing.assert_close(found.logprobs, wanted.logprobs)
    assert sum(tape.replays for tape in tapes) > len(tapes)


def test_between_replays_the_host_starts_nothing(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(build(CONFIG, seed=1), slots=4, graphs=True)
    engine.generate(prompts(4), settings(), seed=0)
    step, counts = engine._step, list[int]()
    assert step is not None
    monkeypatch.setattr(Tape, "replay", lambda tape: None)

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counts[-1] += 1
            return function(*args, **(kwargs or {}))

    for steps in (2, 8):
        out = Collected(4, 64, device=torch.device("cpu"), sets=False)
        counts.append(0)
        with torch.inference_mode(), Counted():
            step._replayed(4, [64] * steps, out)
    assert counts[0] == counts[1]


def test_all_recordings_of_an_engine_share_one_pool_until_they_are_dropped(tapes: list[Tape]) -> None:
    engine = Engine(build(LONG, seed=1), slots=8, graphs=True)
    engine.generate(prompts(9), settings(samples=3), seed=0)
    assert len(tapes) > 1 and {tape.pool() for tape in tapes} == {tapes[0]}
    first = len(tapes)
    engine.generate(prompts(9), settings(samples=3, max_new_tokens=100), seed=0)  # in a larger cache
    assert len(tapes) > first and {tape.pool() for tape in tapes[first:]} == {tapes[first]}


def test_settings_of_another_form_do_not_cost_the_recordings_of_the_first(tapes: list[Tape]) -> None:
    model, asked = build(CONFIG, seed=1), prompts(5)
    engine = Engine(model, slots=4, graphs=True)
    forms = [settings(), settings(temperature=0), settings(repetition_penalty=1.3, top_k=7)]
    wanted = [Engine(model, slots=4, graphs=False).generate(asked, one, seed=0).token_ids for one in forms]
    for again in range(3):
        made = len(tapes)
        for one, ids in zip(forms, wanted, strict=True):
            assert torch.equal(engine.generate(asked, one, seed=0).token_ids, ids)
        assert (len(tapes) > made) == (again == 0)


def test_a_cache_that_is_recorded_over_has_its_whole_room_at_once(tapes: list[Tape]) -> None:
    engine = Engine(build(LONG, seed=1), slots=2, graphs=True)
    grow = Mock(side_effect=AssertionError("what was recorded would be lost"))
    sampling = settings(max_new_tokens=150)
    with patch("lifecycle.model.Cache.grow", grow):
        engine.generate(prompts(2), sampling, seed=0)
        made = len(tapes)
        assert made >= 3  # of 64, 128 and 192 positions
        engine.generate(prompts(2), sampling, seed=1)
    assert len(tapes) == made


def test_a_recording_serves_all_numbers_of_one_form(tapes: list[Tape]) -> None:
    model, asked = build(CONFIG, seed=1), prompts(3)
    engine = Engine(model, slots=4, graphs=True)
    for number in range(4):
        sampling = settings(temperature=0.5 + number / 3, top_k=5 + number, top_p=0.9 - number / 9)
        wanted = Engine(model, slots=4, graphs=False).generate(asked, sampling, seed=0)
        found, made = engine.generate(asked, sampling, seed=0), len(tapes)
        assert torch.equal(found.token_ids, wanted.token_ids) and torch.equal(found.kept.ids, wanted.kept.ids)
        engine.generate(asked, settings(temperature=2.0 + number, top_k=8, top_p=0.3), seed=0)
        assert len(tapes) == made


@pytest.mark.parametrize("graphs", [False, True])
def test_what_was_compiled_is_what_runs_and_no_row_at_rest_is_computed(
    graphs: bool, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []

    def compiler(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def compiled(step: Any, table: Tensor, *rest: Any) -> Any:
            widths.append(table.shape[1])
            return function(step, table, *rest)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    model = build(CONFIG, seed=1)
    sampling = Sampling(max_new_tokens=10)
    wanted = Engine(model, slots=16, graphs=False).generate([[1, 2, 3]], sampling, seed=0)
    engine = Engine(model, slots=16, compiled=True, graphs=graphs)
    assert torch.equal(engine.generate([[1, 2, 3]], sampling, seed=0).token_ids, wanted.token_ids)
    assert set(widths) == {1}
    # at a recording: once to set itself up, once on the tape
    assert len(widths) == (2 * len(tapes) if graphs else 10)
    assert sum(tape.replays for tape in tapes) == (10 if graphs else 0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # in torch, at the first compilation
def test_one_compiled_step_serves_all_lengths_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, steps, real = [0], [0], torch.compile

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        compiled[0] += 1

        def run(*inputs: Any) -> Any:
            steps[0] += 1
            return graph(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", lambda function, **how: real(function, backend=backend, **how))
    model = build(replace(CONFIG, max_positions=2048), seed=1)
    engine = Engine(model, slots=2, compiled=True)
    for number, length in enumerate((3, 70, 130, 200, 300, 420, 530, 700, 900, 1100, 1500)):
        sampling = settings(max_new_tokens=3, temperature=0.5 + number, top_k=10 + number)
        engine.generate([[1] * length], sampling, seed=0)
    assert steps[0] == 33 and compiled[0] <= 3


@pytest.mark.parametrize("compiled", [False, True])
def test_an_engine_that_is_done_with_frees_its_cache_at_once(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *given: function(*given))
    engine = Engine(build(CONFIG, seed=1), slots=4, compiled=compiled, graphs=False)
    engine.generate([[1, 2, 3]], Sampling(max_new_tokens=4), seed=0)
    step = engine._step
    assert step is not None and step.cache is not None
    held: list[weakref.ref[Any]] = [weakref.ref(step), weakref.ref(step.cache)]
    gc.disable()  # a cycle would be found by it, some time
    try:
        del step, engine
        assert [one() for one in held] == [None, None]
    finally:
        gc.enable()
