"""The exercises are true, their own solutions say so, and they are the same everywhere."""

import hashlib
import json
import math
import re
from pathlib import Path

import pytest

from lifecycle.data.read.files.builtin_text import materialise
from lifecycle.data.read.files.exercises import LEVELS, ROWS, exercises
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.in_words import as_text
from lifecycle.data.read.spec import SourceSpec

SUMS = SourceSpec(path="python://arithmetic", format="word_problem", fields={"level": "level"})


def test_every_calculation_is_right_and_the_last_is_the_answer() -> None:
    levels = []
    for row in exercises("arithmetic"):
        marks = re.findall(r"<<(\d+)([+*])(\d+)=(\d+)>>", row["answer"])
        for first, sign, second, result in marks:
            assert (int(first) + int(second) if sign == "+" else int(first) * int(second)) == int(result)
        made = to_record(row, spec=SUMS, name="sums", row_id="1")
        assert made.answer == marks[-1][3] and made.level == len(marks)
        levels.append(made.level)
    assert len(levels) == ROWS and set(levels) == set(range(1, LEVELS + 1))


def test_every_line_of_thought_and_every_answer_is_right() -> None:
    kinds = set()
    for row in exercises("reasoning"):
        question, said = (turn["content"] for turn in row["messages"])
        numbers = [int(n) for n in re.findall(r"\d+", question)]
        answer = said.split("</think>\n\n")[1]
        for whole, times, part, rest in re.findall(r"(\d+) = (\d+) \* (\d+)(?: \+ (\d+))?", said):
            assert int(whole) == int(times) * int(part) + int(rest or 0)
        kinds.add(question.split()[0])
        if question.startswith("What is the greatest common divisor"):
            assert answer == f"It is {math.gcd(*numbers)}."
        elif question.startswith("Is"):
            prime = all(numbers[0] % divisor for divisor in range(2, numbers[0]))
            assert answer.startswith("Yes" if prime else "No")
        else:
            assert answer == f"It is {max(numbers)}."
    assert kinds == {"What", "Is", "Which"}


@pytest.mark.parametrize("kind", ["arithmetic", "reasoning"])
def test_no_question_comes_twice_and_all_are_the_same_each_time(kind: str, tmp_path: Path) -> None:
    rows = list(exercises(kind))
    asked = [row["question"] if "question" in row else row["messages"][0]["content"] for row in rows]
    assert len(set(asked)) == len(rows) == ROWS
    written = [json.loads(line) for line in materialise(kind, tmp_path).read_text().splitlines()]
    assert written == rows == list(exercises(kind))


def test_they_become_text_with_their_thoughts() -> None:
    row = next(iter(exercises("reasoning")))
    text = as_text(to_record(row, spec=SourceSpec(path="x", format="messages"), name="r", row_id="1"))
    assert re.fullmatch(r"User: .*\?\n\nAssistant: <think>\n.*\n</think>\n\n.*", text, re.DOTALL)


def test_the_rows_of_this_version_are_known() -> None:
    digest = hashlib.sha256(json.dumps([*exercises("arithmetic"), *exercises("reasoning")]).encode()).hexdigest()
    assert digest[:16] == "596972d02654efe0"  # another one wants another `RECIPE`, or caches keep the rows of before
