"""What a share gained, and how sure that is."""

import itertools
import math

import numpy as np
import pytest

from lifecycle.rewards.interval import gain, pass_at, pass_at_interval


def test_a_gain_is_the_difference_of_the_shares_and_its_interval_that_of_paired_questions() -> None:
    before, after = [False] * 200 + [True] * 800, [True] * 150 + [False] * 50 + [True] * 750 + [False] * 50
    more, low, high = gain(before, after)
    spread = 1.96 * math.sqrt((0.2 - 0.1**2) / 1000)  # 150 gained and 50 lost of 1,000
    assert more == pytest.approx(0.1)
    assert low == pytest.approx(0.1 - spread, abs=2e-3) and high == pytest.approx(0.1 + spread, abs=2e-3)


def test_answers_that_stay_the_same_gain_nothing_for_certain() -> None:
    assert gain([True, False, True], [True, False, True]) == (0.0, 0.0, 0.0)


def test_a_gain_is_told_the_same_each_time() -> None:
    before, after = [False, True] * 20, [True, True, False, True] * 10
    assert gain(before, after) == gain(before, after)
    assert gain(after, before)[0] == -gain(before, after)[0]


def test_pass_at_k_by_hand() -> None:
    # four samples of each prompt: one prompt with none right, two with one, one with all
    by_count = [1, 2, 0, 0, 1]
    assert pass_at(1, by_count) == pytest.approx((0 + 2 * 1 / 4 + 1) / 4)
    assert pass_at(2, by_count) == pytest.approx((0 + 2 * 1 / 2 + 1) / 4)
    assert pass_at(4, by_count) == pytest.approx(3 / 4)
    assert pass_at(2, [0, 0, 1]) == 1 and pass_at(2, [1, 0, 0]) == 0


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_pass_at_k_is_the_share_of_all_draws_without_replacement_and_the_published_product(k: int) -> None:
    n = 6
    for right in range(n + 1):
        samples = [True] * right + [False] * (n - right)
        draws = [any(chosen) for chosen in itertools.combinations(samples, k)]
        published = 1.0 if n - right < k else 1.0 - np.prod(1.0 - k / np.arange(n - right + 1, n + 1))
        found = pass_at(k, [float(c == right) for c in range(n + 1)])
        assert found == pytest.approx(sum(draws) / len(draws)) and found == pytest.approx(float(published))


def test_the_interval_of_pass_at_k_is_that_of_prompts_drawn_anew() -> None:
    by_count, k = [30, 20, 10, 5, 35], 2
    low, high = pass_at_interval(k, by_count)
    each = np.repeat([pass_at(k, [float(c == right) for c in range(5)]) for right in range(5)], by_count)
    drawn = np.random.default_rng(1).choice(each, (20_000, len(each))).mean(1)
    assert (low, high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=5e-3)
    assert low < pass_at(k, by_count) < high and pass_at_interval(k, by_count) == (low, high)
    assert pass_at_interval(1, [7, 0, 0]) == (0.0, 0.0)
