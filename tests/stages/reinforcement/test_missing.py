"""A reward that is missing is no reward of 0: in sums, in what varies, in what held-out answers are divided by."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.stages.reinforcement.made import GRADED, ByTokens, grpo, ppo, prompts
from tests.stages.reinforcement.test_grpo import train
from tests.stages.reinforcement.test_held_out import Held, asked
from tests.stages.reinforcement.test_reward_model import asked_model, drawn
from tests.stages.reinforcement.test_spo import spo
from tests.stages.test_step import Batches, Kept, trainer_of
from torch import Tensor

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.losses.policy.advantages import AdvantageName, advantages, varying_groups
from lifecycle.stages.base import Stage
from lifecycle.stages.reinforcement.acting import told
from lifecycle.stages.reinforcement.acting.choice_of_prompts import keys_of
from lifecycle.stages.reinforcement.acting.scoring import SampleScores, Scoring, comparable, compared
from lifecycle.stages.reinforcement.preferences.learner import of_choice
from lifecycle.stages.reinforcement.settings import RewardModelKeys

NAN = torch.nan
MODEL = RewardModelKeys(path="judge", reads_to="auto", mean=0.0, std=1.0, clip=None, sigmoid=False, unfinished=None)


def scores(marks: list[list[float]], weights: dict[str, float], place: list[int] | None = None) -> SampleScores:
    return SampleScores(
        names=[*weights],
        weights=[*weights.values()],
        rewards=torch.tensor(marks, dtype=torch.float64),
        place=torch.tensor(place or [0] * len(marks)),
        failed={},
        timed_out={},
    )


def test_a_reward_without_a_weight_is_none() -> None:
    found = scores([[NAN, 0.3], [1.0, NAN]], {"number": 1.0, "length": 0.0})
    assert found.total.isnan().tolist() == [True, False] and found.filled.isnan().tolist() == [True, False]


def test_a_pair_needs_two_samples_that_can_be_compared_and_so_does_a_tie() -> None:
    marks = [[1.0, NAN], [NAN, 0.5], [0.5, NAN], [0.5, 0.1]]  # the second reward has no weight
    total = comparable(scores(marks, {"judge": 1.0, "length": 0.0}, [0, 0, 1, 1]))
    assert total.isnan().tolist() == [False, True, False, False]
    place = torch.tensor([0, 0, 1, 1])
    told = of_choice(SimpleNamespace(advantage=torch.zeros(4), place=place), total)  # type: ignore[arg-type]
    assert [told[f"rlaif/{name}"].tolist() for name in ("ties", "unscorable")] == [[1, 2], [1, 4]]


def test_a_penalty_for_length_is_taken_off_a_reward_and_is_none() -> None:
    given = prompts(0)
    rollout = drawn(given)
    made = grpo(setup={"asked": {"reward_model": asked_model()}, "source_rewards": [{"exact_match": 1.0}, None]})
    made.trainer = trainer_of(1, Path())
    unknown = replace(given, answer=[None if of == 0 else "x" for of in given.source_ids.tolist()])
    scoring = Scoring(replace(GRADED, overlong_buffer=9), made.setup_facts, longest=9)
    found = scoring.scores(made, rollout, unknown)
    scoring.close()
    lacks = torch.isin(rollout.prompt_id, given.number[given.source_ids == 0])
    assert found.names[-1] == "overlong" and torch.equal(found.total.isnan(), lacks)
    assert torch.equal(found.rewards[:, -1].isnan(), lacks)


@pytest.mark.parametrize("kind", ["group_mean", "gdpo"])
def test_groups_vary_where_their_advantages_do(kind: AdvantageName) -> None:
    """A sample that one reward is missing of counts as the mean of it, in what is trained and in what is told; equal
    sums of other rewards teach `gdpo`."""
    drawn = torch.Generator().manual_seed(0)
    for _ in range(200):
        marks = torch.randint(0, 3, (12, 2), generator=drawn).double()
        marks = marks.masked_fill(torch.rand(12, 2, generator=drawn) < 0.3, NAN)
        found = scores(marks.tolist(), {"judge": 1.0, "length": 0.5}, [n // 4 for n in range(12)])
        found = replace(found, apart=kind == "gdpo")
        moved = advantages(found.rewards, found.weights_R, found.place, kind=kind).view(3, 4) != 0
        assert torch.equal(varying_groups(found.compared_by, found.place), moved.any(1))


@pytest.mark.parametrize("kind", ["group_std", "gdpo"])
def test_a_step_trains_on_prompts_whose_rewards_differ_as_its_advantage_compares_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: AdvantageName
) -> None:
    class Swapped(ByTokens):
        """Two rewards whose sum is the same for every answer."""

        def __init__(self, *given: Any, apart: bool = False, **more: Any) -> None:
            self.beside, self.carried, self.apart = list[Any](), dict[str, Any](), apart
            asked_for.append(apart)

        def scores(self, stage: Stage, rollout: Rollout, prompts: PromptBatch) -> SampleScores:
            found = super().scores(stage, rollout, prompts)
            rewards = torch.cat([found.rewards, 1 - found.rewards], 1)
            return replace(found, names=["a", "b"], weights=[1.0, 1.0], rewards=rewards, apart=self.apart)

    asked_for = list[bool]()
    monkeypatch.setattr("lifecycle.stages.reinforcement.acting.actor.Scoring", Swapped)
    made = grpo(steps=1, varying_prompts=2, samples=3, advantage=kind)
    made.actor.scoring = Swapped(apart=asked_for[-1])  # type: ignore[assignment]
    row = train(made, tmp_path, 1)[1]
    assert row["rollout/prompts_kept"] == (2 if kind == "gdpo" else 0)


class Half(ByTokens):
    """No grader has marked the answers to every second prompt."""

    def scores(self, stage: Stage, rollout: Rollout, prompts: PromptBatch) -> SampleScores:
        found = super().scores(stage, rollout, prompts)
        return replace(found, rewards=found.rewards.masked_fill((found.place % 2 == 0)[:, None], NAN))


def held_out_row(scoring: ByTokens, folder: Path) -> dict[str, float]:
    """What is logged of held-out answers, marked so."""
    facts = {"validation_samples": 4, "validate_every": 1, "domains": {"asked": (1.0, None)}}
    made, logger = grpo(steps=1, setup=facts, lr=1e-9), Kept()
    made.actor.scoring = scoring  # type: ignore[assignment]
    trainer_of(1, folder / type(scoring).__name__, logger=logger).fit(made, Held([[prompts(0)]], [asked()]))
    return {k.rpartition("/")[2]: v for k, v in logger.rows[1].items() if k.startswith("valid/asked/")}


def test_shares_of_held_out_answers_are_of_all_and_rewards_of_those_that_have_one(tmp_path: Path) -> None:
    half, every = (held_out_row(scoring, tmp_path) for scoring in (Half(), ByTokens()))
    assert {name: half[name] for name in ("stopped", "length")} == {name: every[name] for name in ("stopped", "length")}
    assert 0 <= half["stopped"] <= 1 and half["length"] <= 9
    assert 0 < half["sampled_reward"] < 1 and half["sampled_reward"] != every["sampled_reward"]
    assert {*half} == {*every} == {"loss", "reward", "stopped", "length", "sampled_reward"}


def test_the_mean_of_samples_is_over_the_prompts_that_have_a_mark_whatever_their_greedy_answers_have() -> None:
    class Drawn:
        def __len__(self) -> int:
            return 6

    found = scores([[NAN], [NAN], [1.0], [NAN], [0.5], [0.0]], {"judge": 1.0}, [0, 0, 1, 1, 2, 2])
    sums: Tensor = told.sampled_sums(Drawn(), found, 2)  # type: ignore[arg-type]
    means = dict(zip(told.measures(2), [0.1, 1.0, 2.0, 3.0, *sums.tolist()], strict=True))  # one greedy answer has one
    assert told.held_out(means, 1.0)["sampled_reward"] == pytest.approx((1.0 + 0.25) / 2)


@pytest.mark.parametrize("kind", ["batch", "none"])
def test_a_sum_that_has_lost_a_part_is_compared_with_no_other_prompt(kind: Any) -> None:
    """A judge that failed is no judge that gave 0. A row of which it has nothing to say is whole."""
    found = scores([[1.0, 0.5], [NAN, 0.5], [NAN, 0.1], [0.0, 0.2]], {"judge": 1.0, "length": 1.0}, [0, 1, 2, 3])
    lost = replace(found, lost=torch.tensor([[False, False], [True, False], [False, False], [False, False]]))
    assert lost.incomplete.tolist() == [False, True, False, False]
    advantage = compared(lost, kind=kind, device=torch.device("cpu"))
    others = compared(lost.rows([0, 2, 3]), kind=kind, device=torch.device("cpu"))
    assert advantage[1] == 0 and advantage[[0, 2, 3]].tolist() == pytest.approx(others.tolist())
    group = replace(lost, place=torch.tensor([0, 0, 1, 2]))  # another of its prompt has it: it counts as the mean
    assert not group.incomplete.any() and compared(group, kind="none", device=torch.device("cpu"))[1] == 1.5
    watched = replace(lost, weights=[0.0, 1.0])
    assert not watched.incomplete.any()


class Lost(ByTokens):
    """A judge fails on the answers to every second prompt, which are marked by their length alone."""

    def scores(self, stage: Stage, rollout: Rollout, prompts: PromptBatch) -> SampleScores:
        found = super().scores(stage, rollout, prompts)
        fails = found.place % 2 == 0
        judged = torch.ones_like(found.rewards).masked_fill(fails[:, None], NAN)
        return replace(
            found,
            names=["judge", "length"],
            weights=[0.5, 0.5],
            rewards=torch.cat([judged, found.rewards], 1),
            lost=torch.stack([fails, torch.zeros_like(fails)], 1),
        )


def test_a_critic_is_not_trained_on_what_has_lost_a_part(tmp_path: Path) -> None:
    rows, batches = list[dict[str, float]](), Batches([[prompts(0)]])  # type: ignore[list-item]
    for scoring in (Lost(), ByTokens()):
        made, logger = ppo(steps=1), Kept()
        made.actor.scoring = scoring  # type: ignore[assignment]
        trainer_of(1, tmp_path / str(len(rows)), logger=logger).fit(made, batches)
        rows.append(logger.rows[1])
    assert 0 < rows[0]["train/tokens"] < rows[1]["train/tokens"]


def test_a_tracker_counts_nothing_of_what_has_lost_a_part(tmp_path: Path) -> None:
    made = spo(chosen=4, steps=1)
    made.actor.scoring = Lost()  # type: ignore[assignment]
    trainer_of(1, tmp_path).fit(made, Batches([[prompts(0)]]))  # type: ignore[list-item]
    keys, state = keys_of(prompts(0)), made.stream.trackers.state()
    alpha = dict(zip(state["keys"].tolist(), state["alpha_P"].tolist(), strict=True))
    assert [alpha[key] == 0.5 for key in keys] == [True, False, True, False]


def test_what_fails_is_told_as_a_share_of_the_samples_however_they_are_split() -> None:
    rollout = drawn(prompts(0))
    found = {**vars(scores([[NAN]] * len(rollout), {"judge": 1.0}))}
    two, none = (told.of_samples(rollout, SampleScores(**{**found, "failed": of})) for of in ({"judge": 2}, {}))
    both = two["reward/judge/failed"] + none["reward/judge/failed"]  # of two ranks, or of two parts of a step
    assert both.tolist() == [2, 2 * len(rollout)] and two["reward/judge/timed_out"].tolist() == [0, len(rollout)]


def test_no_mark_of_a_reward_without_bounds_is_the_most() -> None:
    found = scores([[3.0, 1.0], [NAN, 1.0]], {"reward_model": 1.0, "choice": 1.0})
    assert found.is_full.tolist() == [False, True]


def test_a_reward_of_the_stage_that_no_source_has_is_asked_for_nothing() -> None:
    given = prompts(0)
    rollout = drawn(given)
    own = [{"length": 2.0}, {"length": 1.0}]
    made = grpo(setup={"asked": {"reward_model": asked_model()}, "source_rewards": own})
    made.trainer = trainer_of(1, Path())
    keys: dict[str, Any] = {"rewards": {"reward_model": 1.0}, "reward_model": MODEL}
    scoring = Scoring(replace(GRADED, **keys), made.setup_facts, longest=9)
    for one in scoring.beside:
        one.build(None)
    found = scoring.scores(made, rollout, given)
    scoring.close()
    assert found.names == ["length", "length"] and not found.total.isnan().any()


def test_what_was_not_marked_lowers_no_reward_that_is_told() -> None:
    """A judge that fails on one answer of a prompt, on all of another, and has nothing to say of a third."""
    marks = [[0.8, 1.0], [NAN, 1.0], [NAN, 0.5], [NAN, 0.5], [NAN, 0.25], [NAN, 0.25]]
    found = scores(marks, {"judge": 1.0, "length": 0.5}, [0, 0, 1, 1, 2, 2])
    fails = torch.tensor([[False, True, True, True, False, False], [False] * 6]).T
    worth = replace(found, lost=fails).worth
    assert worth.isnan().tolist() == [False, False, True, True, False, False]
    assert worth[~worth.isnan()].tolist() == pytest.approx([1.3, 1.3, 0.125, 0.125])


def test_a_judge_that_fails_makes_held_out_answers_no_worse(tmp_path: Path) -> None:
    row = held_out_row(Lost(), tmp_path)
    assert min(row["reward"], row["sampled_reward"]) >= 0.5  # half of the 1 that the judge gives to all that it marks
