"""Shares of the sources by hand: phases with weights of their own, and replay by a share or by weights."""

from typing import Any

import pytest

from lifecycle.data.mixture.batch_plan import BatchPlan, Phase, fixed, mixture, parts
from lifecycle.errors import UserError


def plan(weights: dict[str, Any], *own: dict[str, float] | None, share: float | None = None) -> BatchPlan:
    """A run of 20 steps whose phases of 10 steps have the weights `own`."""
    phases = [Phase(step=10 * n, row_length=8, rows=2, weights=one) for n, one in enumerate(own)]
    return BatchPlan.of(mixture(weights, share), phases, 20)


def test_a_phase_weighs_the_sources_and_those_not_named_get_none() -> None:
    made = plan({"a": 1.0, "b": 3.0}, None, {"a": 2.0})
    assert made.weights(9) == {"a": 0.25, "b": 0.75}
    assert made.weights(10) == {"a": 1.0, "b": 0.0}


def test_a_phase_weighs_a_replay_of_the_users_own_and_not_the_parents_mixture() -> None:
    own = plan({"a": 1.0, "replay": 3.0}, None, {"a": 0.9, "replay": 0.1})
    assert own.weights(0) == {"a": 0.25, "replay": 0.75}
    assert own.weights(10) == pytest.approx({"a": 0.9, "replay": 0.1})
    parents = plan({"a": 1.0, "b": 1.0, "replay.x": 1.0, "replay.y": 3.0}, {"a": 1.0}, share=0.2)
    assert parents.weights(0) == pytest.approx({"a": 0.8, "b": 0.0, "replay.x": 0.05, "replay.y": 0.15})


def test_a_share_of_replayed_sources_without_a_weight_is_dealt_evenly_and_of_nothing_else() -> None:
    mix = plan({"a": 1.0, "b": 0.0, "replay": 0.0}, None).mix.changed(5, 0.1)
    assert mix.at(4) == {"a": 1.0, "b": 0.0, "replay": 0.0}
    assert mix.at(5) == pytest.approx({"a": 0.9, "b": 0.0, "replay": 0.1})
    assert parts({"x": 0.0, "y": 0.0}) == {"x": 0.5, "y": 0.5}


def test_weights_that_all_come_to_nothing_are_refused() -> None:
    ends = {"table": {0: 1.0, 0.5: 0.0}}
    with pytest.raises(UserError, match="at step 10 no source has a weight above 0"):
        plan({"a": ends, "b": ends}, None).weights(10)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            {"mathematisc": 1.0, "code": 1.0},
            r"stage.phases\[1\].weights has a weight for mathematisc.*did you mean mathematics",
        ),
        ({"poems": 1.0}, "no such source; the sources are mathematics, code"),
        ({"code": 1.0, "replay.web": 1.0}, "stage.replay.share is the share of all replay"),
        ({"code": 0.0}, "gives no source a weight above 0"),
        ({}, "gives no source a weight above 0"),
        ({"code": -1.0}, r"weights.code is -1.0"),
    ],
)
def test_weights_of_a_phase_that_cannot_be_meant_are_refused(own: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan({"mathematics": 1.0, "code": 1.0, "replay.web": 1.0}, None, own, share=0.1)


@pytest.mark.parametrize(
    ("rows", "ranks", "workers", "said"),
    [
        (256, 8, 2, []),
        (256, 8, 8, ["hardware.workers is 8, and 2 of them work for each device", "may have data.streams=64"]),
        (256, 1, 20, ["16 of them work", "the data has 16 streams in all", "may have data.streams=32"]),
        (8, 8, 4, ["1 of them works for each device: the data has 8 streams in all (data.streams)"]),
    ],
)
def test_workers_without_a_stream_are_named(rows: int, ranks: int, workers: int, said: list[str]) -> None:
    lines = fixed({"a": 1.0}, row_length=16, rows=rows).idle_workers(None, ranks, workers)
    assert len(lines) == bool(said) and all(part in lines[0] for part in said)
    assert rows != 8 or "may have" not in lines[0]  # each row is a stream already
