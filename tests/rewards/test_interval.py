"""What a share gained, and how sure that is."""

import math

import pytest

from lifecycle.rewards.interval import gain


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
