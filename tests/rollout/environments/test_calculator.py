"""What the calculator works out, and that nothing that a model writes hangs it, breaks it or runs."""

import random
import time
import warnings

import pytest

from lifecycle.rewards.record import Answered
from lifecycle.rollout.environments.arithmetic import MOST_CHARACTERS, Unanswerable, worked_out
from lifecycle.rollout.environments.calculator import Calculator
from lifecycle.rollout.environments.environment import Observation

RIGHT = {
    "12 * (3 + 4)": "84",
    "  7 ": "7",
    "-3 + +5": "2",
    "2 ** 10": "1024",
    "2 ** -2": "0.25",
    "(-2) ** 3": "-8",
    "-2 ** 2": "-4",
    "7 // 2": "3",
    "-7 // 2": "-4",
    "-7 % 3": "2",
    "7.5 % 2": "1.5",
    "0.1 + 0.2": "0.3",
    "1 / 3": "0.3333333333",
    "2 / 3 * 3": "2",
    "12 / 4": "3",
    "1 / 8": "0.125",
    "10 ** 30": "1" + "0" * 30,
    "0 ** 0": "1",
    "1 - 1": "0",
    "0 * -1": "0",
    "99999999999 * 99999999999": str(99999999999**2),
    "((((((1))))))": "1",
    "1.50": "1.5",
    ".5 + 5.": "5.5",
}
WRONG = {
    "": "not arithmetic",
    "   ": "not arithmetic",
    "12 *": "not arithmetic",
    "2 3": "not arithmetic",
    "(1)(2)": "not arithmetic",
    "()": "not arithmetic",
    "(" * 50: "not arithmetic",
    "1..2": "not arithmetic",
    "012": "not arithmetic",
    "1 / 0": "division by zero",
    "1 % 0": "division by zero",
    "1 // (2 - 2)": "division by zero",
    "0 ** -1": "division by zero",
    "9 ** 9 ** 9": "too large",
    "9**9**9**9**9": "too large",
    "(9 ** 9) ** (9 ** 9)": "too large",
    "1 ** 10 ** 30": "too large",
    "0.5 ** 99999999": "too large",
    "2 ** 127 * 4": "too large",
    "9" * 60: "too large",
    "9" * 101: "too long",
    "1" + "+1" * 60: "too long",
    "4 ** 0.5": "exponent is not whole",
    "(-1) ** (1 / 3)": "exponent is not whole",
    "1e3": "not arithmetic",
    "1_000": "not arithmetic",
    "0x10": "not arithmetic",
    "3j": "not arithmetic",
    "True": "not arithmetic",
    "x": "not arithmetic",
    "1 if 2 else 3": "not arithmetic",
    "__import__('os').system('true')": "not arithmetic",
    "(1).real": "not arithmetic",
    "[1][0]": "not arithmetic",
    "1, 2": "not arithmetic",
    "1 == 1": "not arithmetic",
    "1 \n + 1": "not arithmetic",
    "1 +\\\n 1": "not arithmetic",
    "1 # 2": "not arithmetic",
    "\x00": "not arithmetic",
    "1\u0660": "not arithmetic",
    "\u0663 + 1": "not arithmetic",
    "\ud800": "not arithmetic",
    "1 @ 2": "not arithmetic",
    "1 & 2": "not arithmetic",
    "1 << 99": "not arithmetic",
    "~1": "not arithmetic",
}


@pytest.mark.parametrize("expression", RIGHT)
def test_it_works_out(expression: str) -> None:
    assert worked_out(expression) == RIGHT[expression]


@pytest.mark.parametrize("expression", WRONG)
def test_it_says_why_not(expression: str) -> None:
    with warnings.catch_warnings(), pytest.raises(Unanswerable, match=f"^{WRONG[expression]}$"):
        warnings.simplefilter("error")
        worked_out(expression)


def test_anything_is_answered_at_once() -> None:
    rng, begun = random.Random(1), time.process_time()
    for _ in range(3000):
        text = "".join(rng.choice("0123456789.+-*/%() **//((9") for _ in range(rng.randint(0, MOST_CHARACTERS)))
        try:
            assert len(worked_out(text)) <= 40
        except Unanswerable:
            pass
    for deep in ("-" * 99 + "1", "+-" * 49 + "1", "1" + "**1" * 33, "9" + "**9" * 33, "(" * 49 + "1" + ")" * 49):
        try:
            worked_out(deep)
        except Unanswerable:
            pass
    assert time.process_time() - begun < 10


def test_it_agrees_with_python() -> None:
    rng = random.Random(2)
    for _ in range(300):
        a, b, c = (rng.randint(-999, 999) for _ in range(3))
        text = f"({a} {rng.choice(['+', '-', '*'])} {b}) {rng.choice(['+', '-', '*', '//', '%'])} {c or 1}"
        assert worked_out(text) == str(eval(text))
        ratio = a / (b or 1)
        assert abs(float(worked_out(f"{a} / {b or 1}")) - ratio) <= 1e-9 * max(1.0, abs(ratio))


def test_the_last_call_is_answered() -> None:
    calculator = Calculator()
    assert calculator.reset(Answered(answer="84")) is None
    assert calculator.step("so <calc>12 * (3 + 4)</calc>") == Observation(text=" = 84")
    assert calculator.step("<calc>1</calc><calc>2</calc>\n") == Observation(text=" = 2")
    assert calculator.step("<calc>1 <calc>2 + 2</calc>").text == " = 4"
    assert calculator.step("<calc>1 / 0</calc>") == Observation(text=" = error: division by zero", failed=True)
    assert calculator.step("1 + 1</calc>") == Observation(text=" = error: no <calc> before it", failed=True)
    assert calculator.step("<calc></calc>") == Observation(text=" = error: not arithmetic", failed=True)
