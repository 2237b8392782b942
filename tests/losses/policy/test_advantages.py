"""Advantages: by hand, for groups that are equal, of one, or without a reward, and in whatever order samples come."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.losses.policy.advantages import (
    EPSILON,
    AdvantageName,
    advantages,
    total_rewards,
    varying_groups,
)

KINDS: tuple[AdvantageName, ...] = get_args(AdvantageName)
OF_GROUPS = ("group_std", "group_mean", "batch_std", "leave_one_out")
"""Kinds that compare a sample with its group alone."""
NAN, E = math.nan, EPSILON
ONE = torch.ones(1, dtype=torch.float64)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def of(kind: AdvantageName, rewards: list[float], groups: list[int]) -> list[float]:
    """With one reward a sample."""
    found: list[float] = advantages(doubles(*rewards)[:, None], ONE, torch.tensor(groups), kind=kind).tolist()
    return found


HAND = [1.0, 0.0, 2.0, 5.0, 3.0], [0, 0, 0, 1, 1]  # means 1 and 4, stds 1 and sqrt 2; of all: mean 2.2, variance 3.7
STD_1, STD_B = math.sqrt(2), math.sqrt(3.7)
VALUES: dict[AdvantageName, list[float]] = {
    "group_std": [0, -1 / (1 + E), 1 / (1 + E), 1 / (STD_1 + E), -1 / (STD_1 + E)],
    "group_mean": [0, -1, 1, 1, -1],
    "batch_std": [0, -1 / (STD_B + E), 1 / (STD_B + E), 1 / (STD_B + E), -1 / (STD_B + E)],
    "leave_one_out": [0, -1.5, 1.5, 2, -2],  # 1 - 2/2, 0 - 3/2, 2 - 1/2, 5 - 3, 3 - 5
    "batch": [(r - 2.2) / (STD_B + E) for r in HAND[0]],
    "none": HAND[0],
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_worked_by_hand(kind: AdvantageName) -> None:
    assert of(kind, *HAND) == pytest.approx(VALUES[kind], abs=1e-12)


def test_gdpo_by_hand() -> None:
    """Two groups of two: the first reward differs in group 0 alone, the second, of weight 2, in both."""
    rewards = torch.stack([doubles(1, 0, 7, 7), doubles(0, 4, 1, 0)], 1)
    found = advantages(rewards, doubles(1, 2), torch.tensor([0, 0, 1, 1]), kind="gdpo")
    first = 0.5 / (math.sqrt(0.5) + E)
    second, third = 2 / (math.sqrt(8) + E), 0.5 / (math.sqrt(0.5) + E)
    sums = [first - 2 * second, -first + 2 * second, 2 * third, -2 * third]
    std = math.sqrt(sum(s**2 for s in sums) / 3)
    assert found.tolist() == pytest.approx([s / (std + E) for s in sums], abs=1e-12)


def test_gdpo_tells_apart_what_a_sum_does_not() -> None:
    """Equal sums of different rewards: only GDPO sees a difference, where the rewards have different spreads."""
    rewards = torch.stack([doubles(1, 0, 0), doubles(0, 1, 1)], 1)
    group = torch.zeros(3, dtype=torch.int64)
    weights = doubles(1, 1)
    assert advantages(rewards, weights, group, kind="group_std").tolist() == [0, 0, 0]
    rewards[2, 0] = 1
    assert advantages(rewards, weights, group, kind="gdpo").abs().min() > 0


def test_a_missing_reward_moves_nothing() -> None:
    """It counts as the mean of its group; where the group lacks it, as 0."""
    rewards = torch.stack([doubles(1, 0, NAN, 2), doubles(NAN, 3, 5, NAN)], 1)
    groups = torch.tensor([0, 0, 0, 1])
    assert total_rewards(rewards, doubles(1, 1), groups).tolist() == [1 + 4, 0 + 3, 0.5 + 5, 2 + 0]
    assert advantages(rewards, doubles(1, 1), groups, kind="none").tolist() == [5, 3, 5.5, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_without_a_reward_is_in_no_mean_and_has_the_advantage_0(kind: AdvantageName) -> None:
    rewards, groups = HAND
    found = of(kind, [*rewards[:3], NAN, *rewards[3:], NAN], [*groups[:3], 0, *groups[3:], 2])
    assert found[3] == found[6] == 0
    assert [a for i, a in enumerate(found) if i not in (3, 6)] == of(kind, *HAND)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_of_weight_0_is_looked_at_by_nobody(kind: AdvantageName) -> None:
    """Also where the others are missing: it is logged, and does not score."""
    groups = torch.tensor([0, 0, 0])
    one = torch.stack([doubles(1, NAN, 3), doubles(9, 8, NAN)], 1)
    found = advantages(one, doubles(1, 0), groups, kind=kind)
    assert torch.equal(found, advantages(one[:, :1], ONE, groups, kind=kind))
    assert found[1] == 0


@pytest.mark.parametrize("kind", [*OF_GROUPS, "gdpo"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-8, -7.7, 1e20])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_groups_and_groups_of_one_have_exactly_0(kind: AdvantageName, value: float, size: int) -> None:
    """Whatever a mean of equal numbers is rounded to; here the second of two rewards is missing once."""
    rewards = torch.full((size, 2), value, dtype=torch.float64)
    rewards[0, 1] = NAN if size > 1 else value
    groups = torch.zeros(size, dtype=torch.int64)
    for dtype in (torch.float64, torch.float32):
        assert advantages(rewards.to(dtype), doubles(1, 0.3), groups, kind=kind).tolist() == [0] * size
    others = torch.tensor([[0.1, 0.7], [0.3, 0.9], [0.8, 0.2]], dtype=torch.float64)
    beside = advantages(torch.cat([rewards, others]), doubles(1, 0.3), torch.tensor([0] * size + [1] * 3), kind=kind)
    assert beside[:size].tolist() == [0] * size
    assert not varying_groups(total_rewards(rewards, doubles(1, 0.3), groups), groups).any()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_and_nothing_known(kind: AdvantageName) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert advantages(torch.zeros(0, 2, dtype=torch.float64), doubles(1, 1), none, kind=kind).shape == (0,)
    unknown = torch.full((4, 2), NAN, dtype=torch.float64)
    assert advantages(unknown, doubles(1, 1), torch.tensor([0, 0, 1, 2]), kind=kind).tolist() == [0] * 4
    assert varying_groups(unknown, torch.tensor([0, 0, 1, 2])).tolist() == [False] * 3
    assert varying_groups(none.double(), none).shape == (0,)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, 1e31])
def test_an_infinite_reward_is_refused_by_its_place(bad: float) -> None:
    rewards = torch.tensor([[0.0, 1.0], [0.0, bad]], dtype=torch.float64)
    for kind in KINDS:
        with pytest.raises(UserError, match=r"reward 1 of sample 1 is .*mend the reward function"):
            advantages(rewards, doubles(1, 1), torch.tensor([0, 0]), kind=kind)


def test_groups_vary_by_equality() -> None:
    """Not by leave-one-out peers, a std or the range of means: one sample of a group that differs is enough."""
    rewards = doubles(1, 1, 1 + 1e-15, 0.3, 0.1 + 0.2, 2, 2, NAN, NAN)
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3])
    assert varying_groups(rewards, groups).tolist() == [True, True, False, False]
    parts = torch.stack([doubles(1, 0, 2, 2), doubles(0, 1, 3, NAN)], 1)
    assert varying_groups(parts, torch.tensor([0, 0, 1, 1])).tolist() == [True, False]  # equal sums
    assert varying_groups(parts.sum(1), torch.tensor([0, 0, 1, 1])).tolist() == [False, False]


def random_samples(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """1 to 12 samples of 2 rewards, their groups, and an order: some rewards missing, some equal, some very large."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 13, (1,), generator=generator))
    pool = torch.cat([doubles(NAN, NAN, 0, 0, 1, 1, 0.1), 10 ** (30 * torch.rand(2, generator=generator).double())])
    rewards = pool[torch.randint(0, len(pool), (count, 2), generator=generator)]
    rewards = torch.where(torch.rand(count, 2, generator=generator) < 0.3, -rewards, rewards)
    groups = torch.randint(0, 4, (count,), generator=generator)
    return rewards, groups, torch.randperm(count, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_every_result_is_finite_and_of_the_sample_whatever_the_order(kind: AdvantageName) -> None:
    weights = doubles(1, 0.5)
    for seed in range(60):
        rewards, groups, order = random_samples(seed)
        found = advantages(rewards, weights, groups, kind=kind)
        assert found.isfinite().all() and found.dtype == torch.float64
        single = advantages(rewards.float(), weights, groups, kind=kind)
        assert single.isfinite().all() and single.dtype == torch.float32
        again = advantages(rewards[order], weights, groups[order], kind=kind)
        scale = float(rewards.nan_to_num().abs().max()) if kind in ("group_mean", "leave_one_out", "none") else 1.0
        torch.testing.assert_close(again, found[order], rtol=1e-9, atol=1e-9 * max(scale, 1))


@pytest.mark.parametrize("seed", range(10))
def test_advantages_of_a_group_sum_to_0_and_no_shift_of_a_prompt_changes_them(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = 10 * torch.randn(9, 1, dtype=torch.float64, generator=generator)
    groups = torch.randint(0, 4, (9,), generator=generator)
    kinds: tuple[AdvantageName, ...] = ("group_std", "group_mean", "leave_one_out")
    for kind in kinds:
        found = advantages(rewards, ONE, groups, kind=kind)
        for group in range(4):
            assert float(found[groups == group].sum()) == pytest.approx(0, abs=1e-9)
        shifted = advantages(rewards + groups[:, None], ONE, groups, kind=kind)
        torch.testing.assert_close(shifted, found, rtol=1e-7, atol=1e-7)
    whole = advantages(rewards, ONE, torch.zeros_like(groups), kind="batch_std")
    torch.testing.assert_close(whole, advantages(rewards, ONE, groups, kind="batch"), rtol=1e-9, atol=1e-9)
