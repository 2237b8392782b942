"""Equality as mathematics of what is stated, and of nothing that is only near it."""

import subprocess
import sys

import pytest

from lifecycle.errors import UserError
from lifecycle.rewards import math as module
from lifecycle.rewards.math import check_math, math
from lifecycle.rewards.record import Answered

RIGHT = [
    ("The answer is 0.5", "1/2"),
    (r"So \boxed{\frac{1}{2}}.", "0.5"),
    (r"The answer is \((x+1)^2\).", "x^2+2x+1"),
    (r"#### $x^2 + 2x + 1$", "(x+1)^2"),
    (r"\boxed{\{2, 1\}}", r"\{1, 2\}"),
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}"),
    ("The answer is x = 5", "5"),
    (r"Thus $x = \frac{3}{4}$", r"\frac{3}{4}"),
    ("<think>The answer is 3</think>The answer is 4", "4"),
    ("<answer>4</answer>", "4"),
    ("The answer is 18 apples", "18"),
]
WRONG = [
    ("The answer is not 5", "5"),
    ("The answer is 1 or 2", "1"),
    (r"\boxed{\{1, 2\}}", "2"),
    (r"The answer is $x \ne 5$", "5"),
    (r"\boxed{x^2 + 1}", "x^2+2x+1"),
    ("<think>The answer is 4", "4"),
    ("", "4"),
    ("The answer is " + "1+" * 1000 + "1", "1001"),
    (r"\boxed{(2, 1)}", "(1, 2)"),
    ("The answer is y", "x"),
]


@pytest.mark.parametrize(("completion", "answer"), RIGHT)
def test_what_equals_the_answer_is_right(completion: str, answer: str) -> None:
    pytest.importorskip("math_verify")
    assert math(completion, Answered(answer=answer)) == 1


@pytest.mark.parametrize(("completion", "answer"), WRONG, ids=[one[:30] for one, _ in WRONG])
def test_what_does_not_is_wrong(completion: str, answer: str) -> None:
    pytest.importorskip("math_verify")
    assert math(completion, Answered(answer=answer)) == 0


def test_that_it_is_not_installed_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lifecycle\[math\]', or take the reward 'number'"):
        check_math()


def test_graders_load_without_torch_and_without_math_verify() -> None:
    code = "import sys; import lifecycle.rewards.pool.worker; print({'torch', 'sympy', 'numpy'} & {*sys.modules})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
