"""Whether a grader finds an answer, right or wrong."""

import math

import pytest
from tests.rewards.test_graded import GRADING

from lifecycle.rewards import readable
from lifecycle.rewards.graded import Rewards
from lifecycle.rewards.graders import GRADERS, KNOW_THE_ANSWER, READERS, STATED
from lifecycle.rewards.record import Answered, Grader

OPTIONS = Answered(answer="B", meta={"options": ["aspirin", "insulin"]})
PROGRAM = Answered(meta={"tests": ["assert f(1) == 2"], "entry_point": "f"})


@pytest.mark.parametrize(
    ("reader", "record", "completion", "found"),
    [
        (readable.choice, OPTIONS, "The answer is (A).", 1),  # wrong, and an answer
        (readable.choice, OPTIONS, "insulin", 1),
        (readable.choice, OPTIONS, "A 45-year-old man has", 0),
        (readable.choice, OPTIONS, "The answer is (D).", 0),  # no option
        (readable.choice, OPTIONS, "A or B", 0),
        (readable.number, Answered(answer="18"), "#### 17", 1),
        (readable.number, Answered(answer="18"), "many of them", 0),
        (readable.number, Answered(answer="18"), "The answer is 3 or 4", 0),
        (readable.text, Answered(answer="x"), "anything", 1),
        (readable.text, Answered(answer="x"), "<think>and on and on", 0),
        (readable.text, Answered(answer="x"), " \n", 0),
        (readable.program, PROGRAM, "Here:\n```python\ndef f(x):\n    return x\n```", 1),
        (readable.program, PROGRAM, "def g(x): return x", 0),  # not what the tests call
        (readable.program, PROGRAM, "def f(x) return", 0),
        (readable.program, PROGRAM, "", 0),
        (readable.program, Answered(), "a\0b", 0),
    ],
)
def test_an_answer_is_found_or_not(reader: Grader, record: Answered, completion: str, found: int) -> None:
    assert reader(completion, record) == found


def test_every_grader_that_knows_the_answer_can_tell_and_a_right_completion_is_readable() -> None:
    assert {name.removesuffix(STATED) for name in READERS} == {*KNOW_THE_ANSWER} < {*GRADERS}
    for name, completion in (("choice", "Answer: B"), ("number", "#### 18"), ("exact_match", "x")):
        record = Answered(answer={"choice": "B", "number": "18", "exact_match": "x"}[name])
        assert GRADERS[name](completion, record) == READERS[f"{name}{STATED}"](completion, record) == 1


def test_in_a_pool_what_has_no_reader_says_nothing() -> None:
    with Rewards({"number": 1.0, "length": 1.0}, by_source={}, grading=GRADING) as rewards:
        found = rewards.stated(["#### 3", "none"], [Answered(answer="4")] * 2, ["s", "s"])
    assert found.marks_SR[:, 0].tolist() == [1, 0]
    assert all(math.isnan(value) for value in found.marks_SR[:, 1].tolist())


def test_math_reads_formulas() -> None:
    pytest.importorskip("math_verify")
    record = Answered(answer="x^2")
    assert [
        readable.math(text, record) for text in (r"\boxed{x+1}", "It is $y$.", "no idea at all", "not \\boxed{}")
    ] == [
        1,
        1,
        0,
        0,
    ]
