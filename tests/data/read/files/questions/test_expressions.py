"""Expressions are answered by Python, and what is held out of them stands in no other data."""

import ast

import pytest

from lifecycle.data.read.files.questions.expressions import KINDS, ROWS, TEMPLATES, expressions

ELSEWHERE = {
    f"What does Python give for `max([{a}, {b}, {c}])`?" for a in range(10) for b in range(10) for c in range(9)
}
ASKED = {kind: [row["messages"] for row in expressions(kind, ELSEWHERE)] for kind in KINDS}


def test_no_expression_is_asked_twice_nor_of_two_kinds() -> None:
    questions = [asked["content"] for kind in KINDS for asked, _ in ASKED[kind]]
    assert len(set(questions)) == len(questions) == sum(ROWS.values())
    assert {kind: len(rows) for kind, rows in ASKED.items()} == ROWS


def test_no_question_of_other_data_is_held_out() -> None:
    held_out = {asked["content"] for asked, _ in ASKED["expressions_held_out"]}
    assert not held_out & ELSEWHERE
    assert ELSEWHERE & {row["messages"][0]["content"] for row in expressions("expressions_held_out", ())}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right_and_all_templates_are_asked(kind: str) -> None:
    found = set()
    for asked, answered in ASKED[kind]:
        expression = asked["content"].split("`")[1]
        start, end = expression.index("["), expression.index("]") + 1
        numbers = ast.literal_eval(expression[start:end])
        template = expression[:start] + "{numbers}" + expression[end:]
        found.add(template)
        ordered = sorted(numbers)
        worked = {
            "sorted({numbers})": ordered,
            "sorted({numbers}, reverse=True)": [*reversed(ordered)],
            "{numbers}[::-1]": [*reversed(numbers)],
            "{numbers}[1:]": [number for place, number in enumerate(numbers) if place],
            "sum({numbers})": sum(numbers),
            "max({numbers})": ordered[-1],
            "min({numbers})": ordered[0],
            "len(set({numbers}))": len(dict.fromkeys(numbers)),
        }
        assert str(worked[template]) == answered["content"]
        assert 3 <= len(numbers) <= 6
    assert found == set(TEMPLATES)
