"""Samples of held-out prompts: pass@k as counted by hand, the same each time and however the prompts are split."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.reinforcement.made import ByTokens, grpo, prompts
from tests.stages.test_step import Batches, Kept, trainer_of
from torch import Tensor

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.stages.base import Stage
from lifecycle.stages.grpo import Grpo
from lifecycle.stages.reinforcement.acting import told
from lifecycle.stages.reinforcement.acting.scoring import SampleScores
from lifecycle.stages.reinforcement.learning.experience import place_of

SAMPLES = 4


class Graded(ByTokens):
    """Right by the tokens of a completion. names: whose marks these are."""

    def __init__(self, *names: str) -> None:
        self.names, self.seen = names, list[Rollout]()

    def scores(self, stage: Stage, rollout: Rollout, prompts: PromptBatch) -> SampleScores:
        self.seen.append(rollout)
        marks, place = right(rollout)[:, None].repeat(1, len(self.names)), place_of(rollout)
        weights = [1.0] * len(self.names)
        return SampleScores(names=[*self.names], weights=weights, rewards=marks, place=place, failed={}, timed_out={})


def right(rollout: Rollout) -> Tensor:
    return ((rollout.token_ids * rollout.exists).sum(1) % 3 == 0).double()


class Held(Batches):
    """With held-out prompts, in the micro-batches that are given."""

    def __init__(self, steps: Any, parts: list[PromptBatch]) -> None:
        super().__init__(steps)
        self.parts = parts

    def val_dataloader(self) -> Any:
        return {"asked": self.parts}


def asked() -> PromptBatch:
    given = prompts(7, (3, 7, 1, 5, 4, 2))
    return replace(given, number=-1 - torch.arange(6))


def measured(
    folder: Path, parts: list[PromptBatch], *, samples: int = SAMPLES, names: tuple[str, ...] = ("number",)
) -> tuple[Mapping[int, Mapping[str, float]], Graded, Grpo]:
    facts = {"validation_samples": samples, "validate_every": 2, "domains": {"asked": (1.0, None)}}
    made, logger = grpo(steps=4, setup=facts, lr=1e-9), Kept()
    made.actor.scoring = graded = Graded(*names)  # type: ignore[assignment]
    trainer_of(4, folder, logger=logger).fit(made, Held([[prompts(step)] for step in range(4)], parts))
    return {step: {k: v for k, v in row.items() if "valid" in k} for step, row in logger.rows.items()}, graded, made


def test_pass_at_k_is_what_is_counted_by_hand(tmp_path: Path) -> None:
    rows, graded, _ = measured(tmp_path, [asked()])
    drawn = next(one for one in graded.seen if int(one.prompt_id[0]) < 0 and len(one) == 6 * SAMPLES)
    counts = right(drawn).view(6, SAMPLES).sum(1).tolist()
    row = rows[2]
    assert 0 < row["valid/asked/pass_at_1"] < 1
    assert row["valid/asked/pass_at_1"] == pytest.approx(sum(counts) / 24)
    pairs = [1 - (4 - c) * (3 - c) / 12 for c in counts]  # of 12 ordered pairs, those without a right one
    assert row["valid/asked/pass_at_2"] == pytest.approx(sum(pairs) / 6)
    assert row["valid/asked/pass_at_4"] == pytest.approx(sum(c > 0 for c in counts) / 6)
    assert row["valid/asked/sampled_reward"] == pytest.approx(sum(counts) / 24)
    for k in (1, 2, 4):
        low, high = row[f"valid/asked/pass_at_{k}_low"], row[f"valid/asked/pass_at_{k}_high"]
        assert 0 <= low <= row[f"valid/asked/pass_at_{k}"] <= high <= 1
    assert not [name for name in row if told.RIGHT in name]


def test_the_draws_are_the_same_each_time_and_none_of_training(tmp_path: Path) -> None:
    _, graded, _ = measured(tmp_path, [asked()])
    drawn = [one for one in graded.seen if int(one.prompt_id[0]) < 0 and len(one) == 6 * SAMPLES]
    assert len(drawn) == 2 and torch.equal(drawn[0].seed, drawn[1].seed) and len(drawn[0].seed.unique()) == 24
    trained = {int(seed) for one in graded.seen if int(one.prompt_id[0]) >= 0 for seed in one.seed}
    assert not trained & set(drawn[0].seed.tolist())


def test_no_split_of_the_prompts_changes_it_and_nor_does_it_change_the_greedy_answers(tmp_path: Path) -> None:
    whole, _, first = measured(tmp_path, [asked()])
    split, _, second = measured(tmp_path, [asked().rows(0, 1), asked().rows(1, 5), asked().rows(5, 6)])
    greedy, _, third = measured(tmp_path, [asked()], samples=0)
    assert whole[2] == pytest.approx(split[2]) and set(greedy[2]) < set(whole[2])
    assert {name: whole[2][name] for name in greedy[2]} == greedy[2]
    for made in (second, third):  # nor the training
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), made.parameters(), strict=True))


def test_rewards_that_do_not_know_the_answer_have_no_pass_at_k(tmp_path: Path) -> None:
    rows, _, _ = measured(tmp_path, [asked()], names=("length",))
    assert "valid/asked/sampled_reward" in rows[2] and not [name for name in rows[2] if "pass_at" in name]


def test_a_prompt_with_a_sample_without_a_mark_is_left_out() -> None:
    class Drawn:
        def __len__(self) -> int:
            return 6

    marks = torch.tensor([1.0, 0.0, 1.0, torch.nan, 0.0, 0.0], dtype=torch.float64)[:, None]
    place = torch.arange(6) // 2
    scores = SampleScores(names=["code"], weights=[2.0], rewards=marks, place=place, failed={}, timed_out={})
    sums: Any = told.sampled_sums(Drawn(), scores, 2)  # type: ignore[arg-type]
    assert sums.tolist() == [1.0 + 2.0 + 0.0, 3, 1, 1, 0]  # by hand: means of what is marked, and prompts with 0, 1, 2
    found = told.held_out(dict(zip(told.measures(2), [0.5, 1.0, 3.0, 1.0, *(sums / 3).tolist()], strict=True)), 3.0)
    assert found["pass_at_1"] == 0.25 and found["pass_at_2"] == 0.5  # over the two prompts that are marked


@pytest.mark.parametrize(("samples", "told_of"), [(1, [1]), (3, [1, 2]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8])])
def test_k_goes_in_powers_of_two_up_to_the_samples(samples: int, told_of: list[int]) -> None:
    means = dict.fromkeys(told.measures(samples), 0.0) | {told.ANSWERS: 1.0, f"{told.RIGHT}{samples}": 1.0}
    found = told.held_out(means, 5.0)
    assert [k for k in range(1, 13) if f"pass_at_{k}" in found] == told_of
    assert all(found[f"pass_at_{k}"] == 1 for k in told_of)
