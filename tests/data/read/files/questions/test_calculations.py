"""Questions for a calculator: what the calls give is the answer, and nothing is asked twice."""

from lifecycle.data.read.files.questions.calculations import KINDS, ROWS, calculations
from lifecycle.rollout.environments.calculator import CLOSE, Calculator


def test_calls_are_answered_as_the_calculator_does() -> None:
    for row in calculations("calculator_calls"):
        _, answer = (turn["content"] for turn in row["messages"])
        call, _, rest = answer.partition(CLOSE)
        said = Calculator().step(call + CLOSE)
        number = said.text.removeprefix(" = ")
        assert rest == f"{said.text}\n{number}" and not said.failed and call.startswith("<calc>")


def test_no_question_is_asked_twice_and_the_rows_are_the_same_each_time() -> None:
    rows = {kind: list(calculations(kind)) for kind in KINDS}
    assert {kind: len(found) for kind, found in rows.items()} == ROWS
    asked = [row["messages"][0]["content"] for found in rows.values() for row in found]
    assert len(set(asked)) == len(asked)
    assert len({row["id"] for found in rows.values() for row in found}) == len(asked)
    assert list(calculations("calculations_held_out")) == rows["calculations_held_out"]
    for row in rows["calculations"]:
        assert row["messages"][1]["content"].lstrip("-").isdigit()
