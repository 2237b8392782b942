"""The last number that is stated, and nothing that only looks like it."""

from fractions import Fraction

import pytest
from tests.real import rows

from lifecycle.rewards.number import final_number, number
from lifecycle.rewards.record import Answered

RIGHT = [
    ("She has 9 * 2 = <<9*2=18>>18 dollars.\n#### 18", "18"),
    ("A: 18", "18"),
    ("The answer is 18.", "18"),
    ("The final answer is: **$18.00**", "18"),
    (r"So \(x\) is \boxed{18}.", "18"),
    (r"\boxed{\frac{3}{4}}", "0.75"),
    (r"\boxed{\$1{,}800}", "1,800"),
    (r"The answer is \boxed{18}", "18"),
    ("#### 1,234,567", "1234567"),
    ("Answer: -3", "-3"),
    ("Answer: \u22123", "-3"),
    ("The answer is 3/4 of a mile", "0.75"),
    ("The answer is 50%", "50"),
    ("The answer is 17. Wait, that is wrong. The answer is 18.", "18"),
    ("The answer is 9 * 2 = 18", "18"),
    ("The answer is 9 * 2 = 18 dollars.", "18"),
    ("She has eighteen, that is 18", "18"),
    ("She has 20 - 2 = 18 eggs.", "18"),
    ("<think>The answer is 17.</think>The answer is 18", "18"),
    ("#### 18\n", "18.0"),
    ("Answer: .5", "1/2"),
]
WRONG = [
    ("#### 17", "18"),
    ("", "18"),
    ("no number", "18"),
    ("18 and more words. #### seventeen", "18"),
    ("<think>The answer is 18", "18"),
    ("<think>The answer is 18</think>", "18"),
    ("The answer is 18. No: the answer is 17.", "18"),
    ("The answer is not 18", "18"),
    ("The answer isn't 18", "18"),
    ("The answer is 18 or 20", "18"),
    ("The answer is 18, 19, 20", "18"),
    ("The answer is 18-20", "18"),
    ("#### 18 19 20", "19"),
    ("The answer is 1.18", "18"),
    ("The answer is 118", "18"),
    ("The answer is 18.5", "18"),
    ("The answer is 18:30", "18"),
    ("The answer is 18,000", "18"),
    ("The answer is -18", "18"),
    ("The answer is 18/2", "18"),
    ("The answer is 18 + 2", "18"),
    ("The answer is 18 * 2 = 36", "18"),
    ("The answer is 18^2", "18"),
    ("A: 18/0", "18"),
    ("#### " + "9" * 100_000, "18"),
    ("The answer is x \\ne 18", "18"),
    ("#### 1" + ",111" * 5000, "18"),
    ("\n" * 200_000, "18"),
    ("answer " * 20_000, "18"),
    ("<<" * 100_000, "18"),
    ("\\boxed{" * 20_000 + "17", "18"),
    ("1," * 100_000, "18"),
    ("\ud800 #### 17", "18"),
    ("#### 18", "eighteen"),
    ("#### 18", ""),
    ("#### x = 1, y = 18", "18"),
]


@pytest.mark.parametrize(("completion", "answer"), RIGHT)
def test_the_number_that_is_stated_last_is_the_answer(completion: str, answer: str) -> None:
    assert number(completion, Answered(answer=answer)) == 1


@pytest.mark.parametrize(("completion", "answer"), WRONG, ids=[one[:30] for one, _ in WRONG])
def test_another_number_and_a_hint_of_the_right_one_are_wrong(completion: str, answer: str) -> None:
    assert number(completion, Answered(answer=answer)) == 0


def test_a_number_is_exact() -> None:
    assert final_number("#### 0.1") == Fraction(1, 10)
    assert final_number("#### 0.30000000000000004") != final_number("#### 0.3")


def test_published_labels_of_what_models_wrote_are_ours() -> None:
    agreed = []
    for row in rows("math/gsm8k_model_solutions.test_part1"):
        truth, told = row["ground_truth"].rpartition("A: ")[2], [one for one in row.values() if isinstance(one, dict)]
        agreed += [(number(one["solution"], Answered(answer=truth)) == 1) == one["is_correct"] for one in told]
    assert len(agreed) == 2640 and sum(agreed) / len(agreed) >= 0.995
