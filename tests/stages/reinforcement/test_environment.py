"""Laws of samples with an environment in the stages: what is marked, told and kept of it; no layout matters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.reinforcement.made import DRAWING, GRADED, POLICY, TALKS, grpo, prompts
from tests.stages.reinforcement.test_grpo import drawn, train, weights

from lifecycle.batch import Dialogue, Rollout
from lifecycle.errors import UserError
from lifecycle.model import build
from lifecycle.rewards.graded import Rewards
from lifecycle.rewards.record import Answered
from lifecycle.stages.reinforcement import settings
from lifecycle.stages.reinforcement.acting.kept_rollouts import read
from lifecycle.stages.reinforcement.acting.scorers.graders import texts
from lifecycle.stages.reinforcement.acting.scoring import Scoring


def talked() -> Rollout:
    return drawn(build(POLICY, seed=1), 0, prompts(0), TALKS)


# -- what is marked


def said(*turns: tuple[bool, str]) -> Dialogue:
    return Dialogue(turns=list(turns), calls=1, failed=0, reward=0.0)


CALL = "<calc>6 * 7</calc>"
STATED: list[tuple[tuple[tuple[bool, str], ...], float]] = [
    (((True, CALL), (False, " = 42"), (True, "\n42")), 1),
    (((True, CALL), (False, " = 42")), 0),  # the environment said it, the policy nothing
    (((True, CALL), (False, " = 42"), (True, "")), 0),
    (((True, CALL), (False, " = 42"), (True, "\n41")), 0),
    (((True, "42" + CALL), (False, " = 42"), (True, " ")), 0),  # said before the call, and not behind it
    (((True, CALL), (False, " = 4"), (True, "2")), 0),  # a number of both
    (((True, "42"),), 1),
    (((True, CALL),), 0),
    (((True, "<calc>42</calc>"),), 0),
    ((), 0),
]


@pytest.mark.parametrize(("turns", "mark"), STATED)
def test_an_environment_cannot_state_the_answer(turns: tuple[tuple[bool, str], ...], mark: float) -> None:
    rollout = replace(talked().rows([0]), dialogues=[said(*turns)])
    last, every = texts(rollout)
    rewards = {"exact_match": 1.0, "length": 1.0}
    with Rewards(rewards, by_source={}, grading=replace(GRADED.grading, target_words=2)) as graded:
        found = graded.graded_in_turns(last, every, [Answered(answer="42")], ["a"])
    assert found.marks_SR[0, 0] == mark
    words = "".join(text for own, text in turns if own).split()
    assert found.marks_SR[0, 1] == max(0.0, 1 - abs(len(words) / 2 - 1))


def test_the_reward_of_an_environment_is_the_sum_over_its_turns() -> None:
    rollout, given = talked(), prompts(0)
    keys = replace(GRADED, rewards={"environment": 2.0, "length": 1.0})
    scoring = Scoring(keys, grpo().setup_facts, longest=9)
    scores = scoring.scores(grpo(), rollout, given)
    scoring.close()
    assert rollout.dialogues is not None
    assert scores.rewards[:, scores.names.index("environment")].tolist() == [
        0.25 * one.calls for one in rollout.dialogues
    ]
    config: dict[str, Any] = {"stage": {"rewards": "environment", "drop_solved": True, "environment": {"name": None}}}
    assert len([one for one in settings.faults(config) if "environment" in one]) == 2
    config["stage"] |= {"environment": {"name": "abacus"}, "drop_solved": False}
    (fault,) = settings.faults(config)
    assert "'abacus'; wanted calculator, or a class of your own, MODULE:CLASS" in fault


# -- what is told and kept


def test_turns_are_told_and_kept(tmp_path: Path) -> None:
    kl = replace(grpo().policy.kl, coefficient=0.1)  # samples with an advantage of 0 are computed too
    made = grpo(steps=1, keep_rollouts=1, environment=TALKS, setup={"folder": tmp_path}, kl=kl)
    row, rollout = train(made, tmp_path / "run", 1)[1], talked()
    assert rollout.dialogues is not None
    calls, failed = sum(d.calls for d in rollout.dialogues), sum(d.failed for d in rollout.dialogues)
    observed = (rollout.exists & ~rollout.sampled).sum() / rollout.length.sum()
    assert 0 < failed < calls and row["rollout/calls_failed"] == pytest.approx(failed / calls)
    assert row["rollout/observed"] == pytest.approx(float(observed)) and 0 < observed < 1
    assert row["rollout/turns"] > 1 and row["train/tokens"] == int(rollout.sampled.sum())
    for kept in read(tmp_path).to_pylist():
        assert "".join(turn["text"] for turn in kept["turns"]) == kept["completion"]
        assert {turn["by"] for turn in kept["turns"]} <= {"policy", "environment"}
        assert kept["trained"][-1] and len(kept["trained"]) == len(kept["token_ids"])
        assert all(value == 0 for value, own in zip(kept["logprobs"], kept["trained"], strict=True) if not own)
    (tmp_path / "rollouts/step-00000001.parquet").rename(tmp_path / "rollouts/step-00000000.parquet")
    alone = grpo(steps=1, keep_rollouts=1, setup={"folder": tmp_path})
    assert "rollout/turns" not in train(alone, tmp_path / "alone", 1)[1]
    assert [row["turns"] is None for row in read(tmp_path).to_pylist()] == [False] * 16 + [True] * 16


# -- layouts


def test_neither_slots_nor_micro_batches_matter(tmp_path: Path) -> None:
    first = grpo(environment=TALKS)
    train(first, tmp_path / "a")
    other = grpo(environment=TALKS, micro_tokens=64)
    other.actor.sampler._keys = replace(other.actor.drawn, slots=2)
    train(other, tmp_path / "b")
    for a, b in zip(weights(first), weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def test_the_policy_gives_what_it_drew_the_probability_of_its_draw(tmp_path: Path) -> None:
    for top_k in (None, 7):
        made = grpo(environment=TALKS, drawing=replace(DRAWING, top_k=top_k))
        for row in train(made, tmp_path / str(top_k)).values():
            assert row["policy/ratio_max_deviation"] < 2e-5 and row["policy/ratio"] == 1


def test_a_name_that_is_none_is_refused_before_the_first_step() -> None:
    with pytest.raises(UserError, match="stage.environment.name is 'abacus'"):
        grpo(environment=replace(TALKS, name="abacus"))


def test_a_run_does_not_go_on_with_another_text_of_the_users_class(tmp_path: Path) -> None:
    sampler = grpo(environment=TALKS).actor.sampler
    state = sampler.state()
    sampler.restore(state)
    sampler.restore(None)  # of an older version
    with pytest.raises(UserError, match="the file of stage.environment.name=.*Talker has changed"):
        sampler.restore("0" * 64)
    assert state is not None and grpo(environment=replace(TALKS, name="calculator")).actor.sampler.state() is None
    made = grpo(environment=TALKS, steps=1)
    train(made, tmp_path, 1)
    saved: dict[str, Any] = {}
    made.on_save_checkpoint(saved)
    assert saved["stage"]["environment"] == state
