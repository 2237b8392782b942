"""The questions are answered by Python, the wrong answers are wrong, and no question is asked in both kinds."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lifecycle.data.read.files.builtin_text import materialise
from lifecycle.data.read.files.questions.python_questions import ROWS, Signature, python_questions

SIGNATURES = [
    Signature("shutil", "copyfile", ["src", "dst"]),
    Signature("os.path", "join", ["a", "b", "c"]),
    Signature("heapq", "heappop", ["heap"]),
    *(Signature("many", f"f{n}", ["x", "y", "z", "u", "v"][: 1 + n % 5]) for n in range(2000)),
]
ASKED, PAIRS = ([*python_questions(kind, SIGNATURES)] for kind in ("questions", "preferences"))


def answered() -> list[tuple[str, str]]:
    """(question, right answer) of both kinds."""
    return [
        *((row["messages"][0]["content"], row["messages"][1]["content"]) for row in ASKED),
        *((row["prompt"], row["chosen"]) for row in PAIRS),
    ]


def value_of(node: ast.expr) -> Any:
    """What a small expression gives, by other means than those it was made with."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=parts):
            return [value_of(part) for part in parts]
        case ast.BinOp(left=left, right=right):
            return [*value_of(left), *value_of(right)]
        case ast.Subscript(value=of, slice=ast.Slice(step=step)):
            return [*reversed(value_of(of))] if step else value_of(of)[1:]
        case ast.Subscript(value=of, slice=index):
            return value_of(of)[value_of(index)]
        case ast.Call(func=ast.Name(id=name), args=[of], keywords=keywords):
            numbers = value_of(of)
            ordered = sorted(numbers)
            total = 0
            for number in numbers:
                total += number
            given = {"sum": total, "max": ordered[-1], "min": ordered[0], "len": len([*numbers])}
            return (ordered[::-1] if keywords else ordered) if name == "sorted" else given[name]
    raise AssertionError(ast.dump(node))


def test_few_questions_are_the_first_of_them() -> None:
    assert [*python_questions("few_questions", SIGNATURES)] == ASKED[:1200] != ASKED


def test_every_answer_is_the_right_one() -> None:
    kinds = set()
    for question, right in answered():
        if found := re.fullmatch(r"What does Python give for `(.*)`\?", question):
            assert value_of(ast.parse(found[1], mode="eval").body) == ast.literal_eval(right)
            kinds.add(re.sub(r"\d", "", found[1]).split("(")[0][:4])
            continue
        written, answer = question.split("`")[1], right.strip("`")
        kinds.add(question.split()[0])
        if question.startswith("In "):
            assert written.startswith(answer + ".") and "." not in written[len(answer) + 1 :]
        else:
            parameters = written[written.index("(") + 1 : -1].split(", ")
            asked = {"How": str(len(parameters))}.get(question.split()[0])
            assert answer == (asked or parameters[0 if "first" in question else -1])
    assert {"In", "What", "How", "sort", "sum", "max", "min", "len"} <= kinds


def test_the_wrong_answer_of_a_pair_is_another_one_of_the_same_form() -> None:
    for row in PAIRS:
        right, wrong = row["chosen"], row["rejected"]
        assert right != wrong
        assert right[0] == wrong[0] or (right[0].isdigit() and wrong[0].isdigit())


def test_no_question_comes_twice_nor_in_both_kinds() -> None:
    questions = [question for question, _ in answered()]
    assert len(set(questions)) == len(questions) == ROWS
    assert 0.25 < len(PAIRS) / ROWS < 0.42


def test_without_signatures_there_are_expressions_alone() -> None:
    rows = list(python_questions("questions", []))
    assert all(row["messages"][0]["content"].startswith("What does Python give") for row in rows)


@pytest.mark.parametrize("kind", ["questions", "preferences"])
def test_this_python_writes_them_the_same_each_time(kind: str, tmp_path: Path) -> None:
    first = materialise(kind, tmp_path / "a").read_bytes()
    assert first == materialise(kind, tmp_path / "b").read_bytes()
    rows = [json.loads(line) for line in first.splitlines()]
    assert any("What is the first parameter of" in json.dumps(row) for row in rows)


@pytest.mark.parametrize("functions", [0, 1, 40])
def test_a_python_with_few_functions_asks_more_of_expressions(functions: int) -> None:
    few = SIGNATURES[:functions]
    rows = [*python_questions("questions", few), *python_questions("preferences", few)]
    asked = {str(row.get("prompt") or row["messages"][0]["content"]) for row in rows}
    assert len(rows) == len(asked) == ROWS
    assert sum("Python give" not in one for one in asked) >= 3 * functions
