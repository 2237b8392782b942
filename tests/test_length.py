"""The first limit reached ends a run, in steps worked out by hand."""

import pytest

from lifecycle.errors import UserError
from lifecycle.length import Limits


def limits(**changes: object) -> Limits:
    values = {"max_steps": None, "max_tokens": None, "max_epochs": None}
    return Limits(view="text", global_batch_tokens=1024, sequence_length=128, **{**values, **changes})  # type: ignore[arg-type]


def never() -> int:
    raise AssertionError("no pass needs to be counted")


def test_the_first_limit_reached_counts() -> None:
    assert limits(max_steps=7).total_steps(never, 1.0) == 7
    assert limits(max_tokens=10_000).total_steps(never, 1.0) == 9  # 9 x 1024 = 9,216: the limit is never passed
    assert limits(max_steps=12, max_tokens=10_000).total_steps(never, 1.0) == 9


def test_a_pass_over_a_source_takes_the_steps_of_its_share() -> None:
    # 5,000 positions are a quarter of the tokens: 20,000 tokens in all a pass, 19.5 steps, and the pass is completed
    assert limits(max_epochs=1).total_steps(lambda: 5000, 0.25) == 20
    assert limits(max_epochs=0.5).total_steps(lambda: 5000, 0.25) == 10
    assert limits(max_epochs=2, max_steps=30).total_steps(lambda: 5000, 0.25) == 30


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "the run has no end"),
        ({"max_steps": 0}, "stage.max_steps is 0"),
        ({"max_steps": 1, "global_batch_tokens": 1000}, "multiple of stage.sequence_length.*try 1024"),
        ({"max_steps": 1, "sequence_length": 1}, "2 positions or more"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, object], words: str) -> None:
    base = {"view": "text", "global_batch_tokens": 1024, "sequence_length": 128}
    base |= {"max_steps": None, "max_tokens": None, "max_epochs": None}
    with pytest.raises(UserError, match=words):
        Limits(**{**base, **changes})  # type: ignore[arg-type]


def test_fewer_tokens_than_a_step_are_refused() -> None:
    with pytest.raises(UserError, match="less than one step"):
        limits(max_tokens=1000).total_steps(never, 1.0)
