"""Samples before the first update: counted as plain Python counts them, and of no effect on what comes after."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.reinforcement.made import POLICY, PREFLIGHT, ByTokens, grpo, prompts
from tests.stages.test_step import Batches, Kept, trainer_of

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.callbacks.rollouts import PREFLIGHT as FILE
from lifecycle.callbacks.rollouts import BeforeFirstUpdate, watching_rollouts
from lifecycle.errors import UserError
from lifecycle.model import build
from lifecycle.stages.base import Stage
from lifecycle.stages.grpo import Grpo
from lifecycle.stages.reinforcement.acting.scoring import SampleScores
from lifecycle.stages.reinforcement.learning.experience import place_of
from lifecycle.stages.reinforcement.settings import PreflightKeys

STEPS = 3
Told = Callable[[Rollout], torch.Tensor]


def by_tokens(rollout: Rollout) -> torch.Tensor:
    return ((rollout.token_ids * rollout.exists).sum(1) % 3 == 0).double()


def by_prompt(rollout: Rollout) -> torch.Tensor:
    return (rollout.prompt_id % 2).double()


class Graded(ByTokens):
    """Marks by a plain function, under the name of a grader that knows the answer."""

    names = ("number",)

    def __init__(self, told: Told) -> None:
        self._told = told

    def scores(self, stage: Stage, rollout: Rollout, prompts: PromptBatch) -> SampleScores:
        marks, place = self._told(rollout)[:, None], place_of(rollout)
        return SampleScores(names=["number"], weights=[1.0], rewards=marks, place=place, failed={}, timed_out={})

    def stated(self, stage: Stage, rollout: Rollout, prompts: PromptBatch) -> dict[str, torch.Tensor]:
        return {"number": (rollout.length > 3).double()}


def made(told: Told = by_tokens, keys: PreflightKeys = PREFLIGHT, **more: Any) -> Grpo:
    stage = grpo(steps=STEPS, **more)
    stage.actor.scoring = Graded(told)  # type: ignore[assignment]
    stage.actor.graded = replace(stage.actor.graded, preflight=keys)
    return stage


def trained(stage: Grpo, folder: Path, *, looks: bool = True) -> dict[int, dict[str, float]]:
    logger, callbacks = Kept(), watching_rollouts(stage, folder) if looks else []
    batches: Any = [[prompts(step)] for step in range(STEPS)]
    trainer_of(STEPS, folder, logger=logger, callbacks=callbacks).fit(stage, Batches(batches))
    return logger.rows


def test_a_run_is_bit_for_bit_the_run_that_was_not_looked_at(tmp_path: Path) -> None:
    runs = [made(), made(), made(keys=replace(PREFLIGHT, prompts=0))]
    rows = [trained(stage, tmp_path, looks=looks) for stage, looks in zip(runs, (False, True, True), strict=True)]
    timed = ("perf/", "rollout/tokens_per_second")
    told = [
        {step: {k: v for k, v in row.items() if not k.startswith(timed)} for step, row in one.items()} for one in rows
    ]
    assert told[0] == told[1] == told[2]
    for mine, theirs in zip(runs[0].network.parameters(), runs[1].network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert runs[1].network.training


def test_what_is_told_is_what_plain_python_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = made(keys=replace(PREFLIGHT, prompts=6, samples=4))
    seen: list[Rollout] = []
    draw = stage.actor.sampler.apart
    stage.actor.sampler.apart = lambda *given, **more: seen.append(draw(*given, **more)) or seen[-1]  # type: ignore
    trained(stage, tmp_path)
    (rollout,), told = seen, json.loads((tmp_path / FILE).read_text())
    numbers = [*range(4), 2**24, 2**24 + 1]  # the first step, and of the second as many as are wanted
    assert rollout.prompt_id.tolist() == [number for number in numbers for _ in range(4)]
    marks = by_tokens(rollout).tolist()
    groups = [marks[at : at + 4] for at in range(0, 24, 4)]
    assert (told["prompts"], told["samples"]) == (6, 4)
    assert told["right"] == [pytest.approx(sum(marks) / 24), sum(any(group) for group in groups) / 6]
    assert told["varying"] == sum(len(set(group)) > 1 for group in groups) / 6
    assert told["full"] == sum(all(group) for group in groups) / 6
    assert told["stopped"] == sum(reason == "stop_id" for reason in rollout.stop_reason) / 24
    assert told["stated"] == {"number": pytest.approx(sum(length > 3 for length in rollout.length.tolist()) / 24)}
    assert told["length"] == pytest.approx(sum(rollout.length.tolist()) / 24)
    assert told["too_long"] == {"a": 0.25} and told["marked"] == 1
    assert [one["why"] for one in told["shown"][:2]] == ["best", "worst"]
    assert [one["reward"] for one in told["shown"][:2]] == [max(marks), min(marks)]
    said = capsys.readouterr().err
    assert "before the first update: 6 prompts, 4 samples of each" in said and f"{told['stopped']:.1%}" in said


def test_a_run_without_anything_to_learn_is_refused_before_its_first_update(tmp_path: Path) -> None:
    stage = made(by_tokens, keys=replace(PREFLIGHT, refuse_below=0.99))
    before = [parameter.clone() for parameter in build(POLICY, seed=1).parameters()]
    with pytest.raises(UserError, match="nothing to learn from"):
        trained(stage, tmp_path)
    assert all(torch.equal(mine, was) for mine, was in zip(stage.network.parameters(), before, strict=True))
    assert json.loads((tmp_path / FILE).read_text())["refused"]


@pytest.mark.parametrize("missing", [False, True])
def test_a_sample_without_a_mark_is_not_one_that_is_wrong(missing: bool, tmp_path: Path) -> None:
    def told(rollout: Rollout) -> torch.Tensor:
        lacks = (rollout.prompt_id % 4 == 0) & (rollout.sample == 0) if missing else torch.zeros(len(rollout)) > 0
        return torch.ones(len(rollout), dtype=torch.float64).masked_fill(lacks, torch.nan)

    trained(made(told, keys=replace(PREFLIGHT, prompts=4, refuse_below=0.0)), tmp_path)
    found = json.loads((tmp_path / FILE).read_text())
    assert found["right"] == [1, 1] and found["reward"] == 1 and found["marked"] == (31 / 32 if missing else 1)


def test_a_sample_is_shown_once_and_one_without_a_mark_is_neither_best_nor_worst(tmp_path: Path) -> None:
    def shown(told: Any, name: str) -> list[tuple[str, float | None, str]]:
        (tmp_path / name).mkdir()
        trained(made(told, keys=replace(PREFLIGHT, prompts=4, refuse_below=0.0)), tmp_path / name)
        found = json.loads((tmp_path / name / FILE).read_text())["shown"]
        return [(one["why"], one["reward"], one["ending"]) for one in found]

    def alike(rollout: Rollout) -> torch.Tensor:
        return torch.zeros(len(rollout), dtype=torch.float64)

    def below(rollout: Rollout) -> torch.Tensor:
        return (-1.0 - rollout.sample.double()).masked_fill(rollout.sample < 2, torch.nan)

    def none(rollout: Rollout) -> torch.Tensor:
        return torch.full((len(rollout),), torch.nan, dtype=torch.float64)

    whys, rewards, _ = zip(*shown(alike, "a"), strict=True)
    assert whys[:2] == ("best", "worst") and rewards[:2] == (0, 0)  # two samples, though they are marked alike
    assert [reward for _, reward, _ in shown(below, "b")][:2] == [-3, -8]
    assert [reward for _, reward, _ in shown(none, "c")][:2] == [None, None]


def test_a_run_that_goes_on_is_not_looked_at_again(tmp_path: Path) -> None:
    stage = made()
    looking = BeforeFirstUpdate(stage.actor, folder=tmp_path)
    looking.on_load_checkpoint(None, stage, {})  # type: ignore[arg-type]
    looking.on_train_start(trainer_of(1, tmp_path), stage)
    assert not (tmp_path / FILE).exists()


def test_single_samples_cannot_differ_and_nothing_is_said_of_it(tmp_path: Path) -> None:
    trained(made(by_prompt, keys=replace(PREFLIGHT, samples=1)), tmp_path)
    found = json.loads((tmp_path / FILE).read_text())
    assert found["varying"] is None and not any("teach" in one for one in found["warned"])
