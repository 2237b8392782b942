"""The marks of a batch: by source, missing where nothing can be said, finite in sum, failures counted apart."""

import math

import pytest

from lifecycle.errors import UserError
from lifecycle.rewards.graded import GradingKeys, Rewards
from lifecycle.rewards.graders import GRADERS
from lifecycle.rewards.record import Answered

GRADING = GradingKeys(
    workers=2, cpu_s=1, wall_s=10, memory_mb=512, file_mb=4, tags=["think", "answer"], target_words=4, repeat_words=2
)


def test_marks_are_weighted_by_source_and_missing_ones_are_left_out_of_the_sum() -> None:
    weights, own = {"number": 1.0, "length": 0.5}, {"medical": {"choice": 2.0, "format": 0.25}}
    completions = ["#### 3", "#### 4", "the answer is (B)", "#### 3", "say nothing more here"]
    answers = [("3", "sums"), ("3", "sums"), ("B", "medical"), ("", "sums"), ("", "medical")]
    records = [Answered(answer=answer) for answer, _ in answers]
    with Rewards(weights, by_source=own, grading=GRADING) as rewards:
        found = rewards.graded(completions, records, [source for _, source in answers])
    assert found.names == ("number", "length", "choice", "format")
    nan = math.nan
    wanted = [[1, 0.5, nan, nan], [0, 0.5, nan, nan], [nan, nan, 1, 0], [nan, 0.5, nan, nan], [nan, nan, nan, 0]]
    assert found.marks_SR.flatten().tolist() == pytest.approx(sum(wanted, []), nan_ok=True)
    assert found.weights_SR.tolist()[2] == [0, 0, 2, 0.25]
    assert found.total_S.tolist() == [1.25, 0.25, 2.0, 0.25, 0.0]
    assert not found.failed and not found.timed_out


def test_a_completion_that_nothing_can_be_said_of_has_no_reward() -> None:
    with Rewards({"number": 1.0}, by_source={}, grading=GRADING) as rewards:
        found = rewards.graded(["#### 3", "#### 3"], [Answered(), Answered(answer="3")], ["s", "s"])
        assert found.total_S.isnan().tolist() == [True, False]
        assert rewards.graded([], [], []).total_S.shape == (0,)


def test_what_takes_too_long_is_0_and_what_fails_is_missing_and_both_are_counted() -> None:
    tests = {"tests": ["assert f(2) == 4"]}
    programs = ["def f(x):\n while True: pass", "def f(x): return 2 * x", "def f(x): return x", "def f(x): return 4"]
    records = [Answered(meta=meta) for meta in (tests, tests, tests, {"tests": ["assert f(2) = 4"]})]
    with Rewards({"code": 1.0}, by_source={}, grading=GRADING) as rewards:
        found = rewards.graded(programs, records, ["s"] * 4)
    assert found.marks_SR[:3, 0].tolist() == [0, 1, 0] and found.marks_SR[3, 0].isnan()
    assert (
        found.timed_out == {"code": 1} and found.failed == {"code": 1} and "tests cannot be run" in found.said["code"]
    )


def test_a_name_that_is_no_grader_is_told() -> None:
    with pytest.raises(UserError, match=r"data.sources.mine.rewards names 'right'.*take of choice, number"):
        Rewards({}, by_source={"mine": {"right": 1.0}}, grading=GRADING)
    assert "choice" in GRADERS
