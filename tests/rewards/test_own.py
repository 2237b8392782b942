"""Laws of functions of the user's own as rewards: what they return is the mark, and nothing they do ends the run."""

import pytest
from tests.rewards import own_functions

from lifecycle.errors import UserError
from lifecycle.rewards.pool.own_worker import own_grader
from lifecycle.rewards.pool.pool import PATIENCE, GradingPool
from lifecycle.rewards.pool.task import FAILED, MARKED, TIMED_OUT, Outcome, Task
from lifecycle.rewards.record import Answered
from lifecycle.rewards.sandbox.limits import SandboxLimits

HOME = own_functions.__name__
LIMITS = SandboxLimits(cpu_s=1, wall_s=3, memory_mb=512, file_mb=4)


def outcomes(name: str, *completions: str, limits: SandboxLimits = LIMITS) -> list[Outcome]:
    name, record = f"{HOME}:{name}", Answered(meta={"bonus": 1})
    with GradingPool(graders=[name], workers=2, limits=limits, own=True) as pool:
        return pool.map([Task(grader=name, completion=text, record=record) for text in completions])


def test_what_a_function_returns_is_the_mark_whatever_it_prints() -> None:
    found = outcomes("short", "a", "four", "")
    assert [(one.state, one.mark) for one in found] == [(MARKED, 2.5), (MARKED, -0.5), (MARKED, 3.5)]


def test_a_function_has_the_environment_of_the_run_and_may_return_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_TEST_KEY", "k")
    assert [one.mark for one in outcomes("by_the_text", "yes", "part", "here")] == [1.0, 0.25, 1.0]
    assert [str(one.mark) for one in outcomes("by_the_text", "none", "nan")] == ["nan", "nan"]


def test_a_function_that_fails_or_never_ends_is_counted_and_the_others_are_marked() -> None:
    asked = ["yes", "raise", "input", "inf", "text", "list", "leave", "sleep", "compute", "yes", "huge"]
    found = outcomes("by_the_text", *asked)
    states = [MARKED, *[FAILED] * 6, TIMED_OUT, TIMED_OUT, MARKED, FAILED]
    assert [one.state for one in found] == states
    said = [one.text for one in found]
    assert said[1].startswith("KeyError: 'kw' (") and "own_functions.py, line " in said[1]
    assert "returned inf" in said[3] and "returned '1.0', wanted a number" in said[4]
    assert said[6] == "the worker ended with code 3"
    assert "returned -1e+31, wanted a number of at most 1e+30" in said[10]


def test_a_function_that_never_marks_anything_ends_the_run_with_what_to_do() -> None:
    limits = SandboxLimits(cpu_s=1, wall_s=0.2, memory_mb=512, file_mb=4)
    with pytest.raises(UserError, match=rf"each of the first {PATIENCE} answers.*stage\.grading\.wall_s=0\.2"):
        outcomes("asleep", *"abcdefgh" * 100, limits=limits)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests.rewards.none_such:short", "importing tests.rewards.none_such fails"),
        (f"{HOME}:shorter", f"{HOME} has no function shorter"),
        ("rules.py:short", "wanted that of its module: rules:short"),
        ("os:system", "of Python's own library"),
        (f"{HOME}:Fraction", "which tests.rewards.own_functions only imports"),
    ],
)
def test_a_name_of_no_function_is_told_with_its_key(name: str, said: str) -> None:
    with pytest.raises(UserError, match="^data.sources.mine.rewards is ") as raised:
        own_grader(name, "data.sources.mine.rewards")
    assert said in str(raised.value)
