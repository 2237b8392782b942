"""What is said of a run that goes wrong: once for each cause, and the same by a run that was stopped on the way."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.stages.reinforcement.made import grpo, prompts
from tests.stages.test_step import Batches, trainer_of

from lifecycle.callbacks.rollouts import NOTICED, WhileTraining
from lifecycle.stages.reinforcement.watching.signs import Facts, Signs
from lifecycle.stages.reinforcement.watching.trends import WINDOW, Trend

FACTS = Facts(bf16=False, rewards=("choice", "format"))
HEALTHY: dict[str, float] = {
    "rollout/entropy": 0.6,
    "policy/kl": 0.02,
    "policy/ratio_max_deviation": 1e-6,
    "policy/sampler_effective": 1.0,
    "rollout/length": 100.0,
    "rollout/stopped": 0.95,
    "rollout/groups_varying": 0.5,
    "spo/rewards_vary": 1.0,
    "rollout/reward": 0.4,
    "reward/choice": 0.4,
    "reward/format": 0.9,
    "reward/choice/failed": 0.0,
    "reward/choice/timed_out": 0.0,
    "critic/explained_variance": 0.4,
}


def rows(then: dict[str, float], *, at: int = 30, steps: int = 60, noise: float = 0.02) -> list[dict[str, float]]:
    """A run that is well up to step `at`, and afterwards as `then` says."""
    draw = random.Random(0)
    out = []
    for step in range(steps):
        row = HEALTHY | (then if step >= at else {})
        out.append({name: value * (1 + noise * draw.uniform(-1, 1)) for name, value in row.items()})
    return out


def said(run: list[dict[str, float]], facts: Facts = FACTS) -> list[tuple[str, int]]:
    signs = Signs(facts)
    for step, row in enumerate(run, start=1):
        signs.see(step, row)
    return [(one.cause, one.step) for one in signs.said]


def test_of_a_run_that_is_well_nothing_is_said() -> None:
    assert said(rows({}, steps=400)) == []
    for seed in range(5):  # noise is no fall
        draw = random.Random(seed)
        noise = [(draw.uniform(0, 1), draw.uniform(0, 1)) for _ in range(400)]
        assert said([HEALTHY | {"rollout/reward": a, "reward/choice": b} for a, b in noise]) == []


@pytest.mark.parametrize(
    ("then", "cause", "words"),
    [
        ({"rollout/entropy": 0.02}, "entropy", ("stage.entropy", "temperature")),
        ({"policy/kl": 2.0}, "kl", ("nats a token from", "stage.kl.coefficient")),
        ({"rollout/length": 10.0}, "shorter", ("have gone from 100 to", "look at them")),
        ({"rollout/stopped": 0.4}, "cut off", ("and 5% were at the start", "max_new_tokens", "overlong_buffer")),
        ({"rollout/groups_varying": 0.0}, "alike", ("loss of 0", "drop_solved", "stage=sft")),
        ({"rollout/groups_varying": 0.0, "rollout/entropy": 0.2}, "alike", ("from 0.6 to 0.2 nats", "Begin again")),
        ({"rollout/reward": 0.1}, "reward", ("RUN@best", "stage.optimizer.lr")),
        ({"policy/ratio_max_deviation": 0.3}, "ratio", ("differ by up to", "% of the sampler's", "=fp32")),
        ({"spo/rewards_vary": 0.0}, "equal", ("same reward", "chosen_per_step")),
        ({"policy/sampler_effective": 0.5}, "ratio", ("effective",)),
        ({"reward/choice/failed": 0.25}, "failed choice", ("fails on", "no mark")),
        ({"reward/choice/timed_out": 0.25}, "failed choice", ("too long for", "gets 0")),
        ({"reward/format": 0.2, "rollout/reward": 0.8}, "apart format", ("shape", "stage.rewards")),
        ({"reward/choice": 0.1, "rollout/reward": 0.8}, "apart choice", ("get worse",)),
        ({"critic/explained_variance": -0.5}, "critic", ("warmup_steps",)),
    ],
)
def test_what_goes_wrong_is_said_once_with_what_to_do(
    then: dict[str, float], cause: str, words: tuple[str, ...]
) -> None:
    signs, run = Signs(FACTS), rows(then, steps=200, noise=0.0)
    new = list(itertools.chain(*(signs.see(step, row) for step, row in enumerate(run, start=1))))
    assert [one.cause for one in new] == [cause] and 30 < new[0].step <= 30 + WINDOW
    assert all(word in new[0].words for word in words), new[0].words


@pytest.mark.parametrize("stopped_at", [1, 9, 25, 31, 40, 55])
def test_a_run_that_was_stopped_says_what_the_run_that_was_not_says(stopped_at: int) -> None:
    run = rows({"rollout/entropy": 0.01, "rollout/stopped": 0.3, "rollout/reward": 0.1})
    first = Signs(FACTS)
    for step in range(stopped_at):
        first.see(step + 1, run[step])
    after = Signs(FACTS)
    after.restore(json.loads(json.dumps(first.state())))
    for step in range(stopped_at, len(run)):
        after.see(step + 1, run[step])
    assert [(one.cause, one.step) for one in after.said] == said(run)
    assert {cause for cause, _ in said(run)} == {"entropy", "cut off", "reward"}


def test_numbers_that_are_missing_say_nothing() -> None:
    assert said([{"rollout/entropy": float("nan"), "rollout/reward": 0.5}] * 100) == []
    assert said([{}] * 100) == []


def test_a_floor_is_a_floor_from_the_first_step_on() -> None:
    assert said([HEALTHY | {"rollout/entropy": 0.001}] * 30) == [("entropy", 2 * WINDOW)]
    assert said([HEALTHY | {"rollout/groups_varying": 0.0}] * 30) == [("alike", 2 * WINDOW)]


def test_in_bf16_ratios_may_be_further_off() -> None:
    run = rows({"policy/ratio_max_deviation": 0.3})
    assert said(run, Facts(bf16=True, rewards=())) == [] and said(run)[0][0] == "ratio"


def test_a_trend_holds_its_first_last_and_best_windows() -> None:
    trend = Trend()
    values = [float(n) for n in [*range(20), *range(20, 0, -1)]]
    for number, value in enumerate(values, start=1):
        trend.add(value)
        assert trend.known == (number >= 2 * WINDOW)
    windows = [values[at : at + WINDOW] for at in range(len(values) - WINDOW + 1)]
    assert trend.start == sum(values[:10]) / 10 and trend.now == sum(values[-10:]) / 10
    assert sum(trend.best) == max(map(sum, windows)) and trend.fallen(trend.best) == sum(trend.best) / 10 - trend.now
    assert trend.fallen(trend.first) == 0  # they are as high


def test_it_is_said_where_people_look_and_a_run_that_goes_back_forgets_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 25
    made = grpo(steps=steps, lr=1e-9)
    monkeypatch.setattr("lifecycle.stages.reinforcement.watching.signs.LEAST_ENTROPY", 1e3)
    watching: Any = WhileTraining(made.actor, folder=tmp_path)
    batches: Any = [[prompts(step)] for step in range(steps)]
    trainer_of(steps, tmp_path, callbacks=[watching]).fit(made, Batches(batches))
    (one,) = json.loads((tmp_path / NOTICED).read_text())
    assert (one["step"], one["cause"]) == (2 * WINDOW, "entropy")
    assert f"noticed at step 20: {one['words']}" in capsys.readouterr().err
    assert watching.state_dict()["said"] == [[20, "entropy", one["words"]]]
    again = WhileTraining(made.actor, folder=tmp_path)  # from a checkpoint before it
    again.load_state_dict({"trends": {}, "said": []})
    trainer_of(1, tmp_path, callbacks=[again]).fit(grpo(steps=1), Batches(batches[:1]))
    assert json.loads((tmp_path / NOTICED).read_text()) == []
