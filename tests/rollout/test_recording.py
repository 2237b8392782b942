"""Recorded steps, on a tape in place of CUDA's graphs: they draw what eager steps draw, and hold what was compiled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.model.variants import VARIANTS
from tests.rollout.sampled import CONFIG, prompts, settings
from tests.rollout.tape import Tape, tapes

from lifecycle.model import build
from lifecycle.rollout import Engine, Sampling

__all__ = ["tapes"]


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


def test_all_recordings_of_an_engine_share_one_pool_until_they_are_dropped(tapes: list[Tape]) -> None:
    engine = Engine(build(CONFIG, seed=1), slots=8, graphs=True)
    engine.generate(prompts(9), settings(samples=3), seed=0)
    assert len(tapes) > 1 and {tape.pool() for tape in tapes} == {tapes[0]}
    first = len(tapes)
    engine.generate(prompts(9), settings(samples=3, temperature=0.5), seed=0)
    assert len(tapes) > first and {tape.pool() for tape in tapes[first:]} == {tapes[first]}


@pytest.mark.parametrize("graphs", [False, True])
def test_what_was_compiled_is_what_runs_and_no_row_at_rest_is_computed(
    graphs: bool, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []

    def compiler(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def compiled(rows: int, *rest: Any) -> Any:
            widths.append(rows)
            return function(rows, *rest)

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
