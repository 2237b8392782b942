"""The letter that is decided for, and no letter that only stands in the text."""

import pytest

from lifecycle.rewards.choice import choice
from lifecycle.rewards.record import Answered

RIGHT = [
    ("A", "A"),
    ("(A)", "A"),
    ("A.", "A"),
    ("**A**", "A"),
    ("A. Metformin", "A"),
    ("B. A drug against pain", "B"),
    ("A. B cells", "A"),
    ("(C) Aspirin", "C"),
    ("Answer: A", "A"),
    ("The answer is (a).", "A"),
    ("The correct answer is B because of the kidney.", "B"),
    ("The best option is C.", "C"),
    (r"\boxed{D}", "D"),
    (r"\boxed{\text{D}}", "D"),
    ("#### E", "E"),
    ("Option A is incorrect. The answer is B.", "B"),
    ("The answer is A. No, wait. The answer is B.", "B"),
    ("<think>The answer is A</think>The answer is B", "B"),
    ("B. Aspirin\n\nIt thins the blood.", "B"),
    ("The answer is option **C**: Aspirin", "C"),
    ("Answer: B", "(B)"),
    ("The answer is A and not B", "A"),
]
WRONG = [
    ("A 45-year-old man", "A"),
    ("A 45-year-old man comes in.", "A"),
    ("Not A", "A"),
    ("The answer is not A", "A"),
    ("The answer is not (A)", "A"),
    ("The answer isn't A", "A"),
    ("The answer is a 45-year-old man", "A"),
    ("The answer is A 45-year-old man", "A"),
    ("A or B", "A"),
    ("The answer is A or B", "A"),
    ("The answer is (A) or (B)", "B"),
    ("The answer is A, B and C", "A"),
    ("Answer: A/B", "A"),
    ("Aspirin", "A"),
    ("The answer is Aspirin", "A"),
    ("The answer is A. The answer is B.", "A"),
    ("A. Metformin\nB. Aspirin", "A"),
    ("Answer: A is wrong", "A"),
    ("<think>The answer is A", "A"),
    ("<think>The answer is A</think>", "A"),
    ("I think so", "I"),
    ("", "A"),
    ("ABCD", "A"),
    ("A B C D", "A"),
    ("Is it A? Is it B?", "A"),
    ("None of these", "A"),
    ("\n" * 200_000, "A"),
    ("answer " * 20_000, "A"),
    ("(" * 100_000 + "A", "A"),
    ("the " * 50_000, "A"),
    ("\ud800", "A"),
]


@pytest.mark.parametrize(("completion", "answer"), RIGHT)
def test_the_letter_that_is_decided_for_is_the_answer(completion: str, answer: str) -> None:
    assert choice(completion, Answered(answer=answer)) == 1


@pytest.mark.parametrize(("completion", "answer"), WRONG, ids=[one[:30] for one, _ in WRONG])
def test_a_letter_that_stands_there_for_another_reason_is_not(completion: str, answer: str) -> None:
    assert choice(completion, Answered(answer=answer)) == 0


OPTIONS = ("Aspirin", "B cells", "memory B cells", "No drug at all", "None of the above")
BY_TEXT = [
    ("The answer is aspirin.", "A"),
    ("Aspirin", "A"),
    ("**Aspirin**", "A"),
    ("The answer is **memory B cells**", "C"),
    ("The answer is memory B cells, which last", "C"),
    ("The answer is no drug at all", "D"),
    ("Answer: (A) Aspirin", "A"),
    ("<answer>None of the above</answer>", "E"),
    ("The correct answer is option B. B cells", "B"),
]
NOT_BY_TEXT = [
    ("The answer is Aspirin or memory B cells", "A"),
    ("The answer is not Aspirin", "A"),
    ("The answer is anything but not aspirin", "A"),
    ("The answer isn't aspirin", "A"),
    ("Aspirin is a drug against pain", "A"),
    ("Aspirin\nB cells", "B"),
    ("The answer is A. memory B cells", "A"),
    ("The answer is A. memory B cells", "C"),
    ("The answer is (Z)", "Z"),
    ("The answer is better than aspirin", "A"),
    ("The answer is Aspirins", "A"),
    ("<think>The answer is aspirin", "A"),
]


@pytest.mark.parametrize(("completion", "answer"), BY_TEXT)
def test_the_text_of_one_option_counts_for_its_letter(completion: str, answer: str) -> None:
    assert choice(completion, Answered(answer=answer, meta={"options": OPTIONS})) == 1


@pytest.mark.parametrize(("completion", "answer"), NOT_BY_TEXT)
def test_a_text_of_several_or_a_denied_one_does_not(completion: str, answer: str) -> None:
    assert choice(completion, Answered(answer=answer, meta={"options": OPTIONS})) == 0


def test_options_of_one_text_are_told_apart_by_letters_alone() -> None:
    same = {"options": ["4", "4"]}
    assert choice("The answer is 4", Answered(answer="A", meta=same)) == 0
    assert choice("The answer is (B)", Answered(answer="B", meta=same)) == 1
