"""Laws of programs that are asked for; choices, word problems and questions: tests/data/read/test_formats.py."""

import json
from typing import Any

import pytest

from lifecycle.batch import Record
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.in_words import as_text
from lifecycle.data.read.row import BadRow
from lifecycle.data.read.spec import SourceSpec
from lifecycle.rewards.pool.pool import GradingPool
from lifecycle.rewards.pool.task import Task
from lifecycle.rewards.record import Answered
from lifecycle.rewards.sandbox.limits import SandboxLimits

MBPP = {"prompt": "text", "tests": "test_list", "setup": "test_setup_code"}
ROW = {
    "text": "Write a function that adds.",
    "code": "def add(a, b):\r\n\treturn a + b\r\n",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
    "test_setup_code": "import math",
}


def record(row: dict[str, Any], **fields: Any) -> Record:
    return to_record(row, spec=SourceSpec(path="x", format="code_problem", fields=fields), name="mine", row_id="1")


def test_tests_are_shown_with_the_task_and_kept_for_rewards() -> None:
    made = record(ROW, **MBPP)
    assert made.prompt == (
        "Write a function that adds.\n\nThe code must pass these tests:\nassert add(1, 2) == 3\nassert add(0, 0) == 0"
    )
    assert made.completion == made.answer == "def add(a, b):\n\treturn a + b"
    assert made.meta["tests"] == ROW["test_list"] and made.meta["setup"] == "import math"
    assert as_text(made) == f"{made.prompt}\n\n{made.completion}"


def test_a_solution_may_go_on_where_the_prompt_ends() -> None:
    row = {
        "prompt": 'def f():\n    """One."""\n',
        "code": "    return 1\n",
        "tests": "assert f() == 1",
        "entry_point": "f",
    }
    made = record(row)
    assert made.prompt == 'def f():\n    """One."""' and made.meta["entry_point"] == "f"
    assert made.meta["begun"].startswith("def f():")
    assert made.completion == as_text(made) == 'def f():\n    """One."""\n    return 1'
    assert made.meta["tests"] == ["assert f() == 1"]


def test_a_task_needs_tests_and_no_solution() -> None:
    bare = record({key: value for key, value in ROW.items() if key != "code"}, **MBPP)
    assert bare.completion is None and as_text(bare) == bare.prompt
    for tests, why in (
        ([], "no tests in test_list"),
        (5, "wrong type of test_list: int"),
        (None, "missing field"),
    ):
        with pytest.raises(BadRow) as bad:
            record({**ROW, "test_list": tests}, **MBPP)
        assert bad.value.reason.startswith(why)


# -- what programs read and write, and calls

TASK = "Write a program that adds the numbers of a line."
ADDS = "print(sum(map(int, input().split())))"
IN_OUT = {"question": TASK, "solutions": json.dumps([ADDS, "other"])}
READS = {"prompt": "question", "tests": "input_output", "code": "solutions"}


def test_inputs_and_outputs_are_kept_for_rewards_and_not_shown() -> None:
    pairs = {"inputs": ["1 2\n", ["3 4", ""]], "outputs": ["3\n", "7"]}
    for given in (pairs, json.dumps(pairs)):
        made = record({**IN_OUT, "input_output": given}, **READS)
        assert made.prompt == TASK and made.completion == ADDS
        assert made.meta["inputs"] == ["1 2\n", "3 4\n"] and made.meta["outputs"] == ["3\n", "7"]
        assert "tests" not in made.meta
    one = {"description": TASK, "public_tests": {"input": ["1 2"], "output": ["3"]}}
    made = record(one, prompt="description", tests="public_tests")
    assert (made.meta["inputs"], made.meta["outputs"], made.completion) == (["1 2"], ["3"], None)


def test_calls_become_asserts() -> None:
    calls = json.dumps({"fn_name": "add", "inputs": [[1, 2], ["a", [True]]], "outputs": [3, None]})
    made = record({**IN_OUT, "input_output": calls}, **READS)
    assert made.meta["tests"] == ["assert add(1, 2) == 3", "assert add('a', [True]) == None"]
    made = record({**IN_OUT, "input_output": calls, "starter_code": "class Solution:\n    pass"}, **READS)
    assert made.meta["tests"][0] == "assert Solution().add(1, 2) == 3"


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ({"inputs": ["1"], "outputs": []}, "input_output has no equally long lists"),
        ({"inputs": "1", "outputs": "1"}, "input_output has no equally long lists"),
        ({"inputs": [], "outputs": []}, "no tests in input_output"),
        ({"inputs": [1], "outputs": ["1"]}, "wrong type of a test in input_output: int"),
        ({"fn_name": "f", "inputs": [1], "outputs": [1]}, "arguments of a call in input_output are no list"),
        ("{nothing", "bad json in input_output"),
    ],
)
def test_broken_tests_are_named(tests: Any, why: str) -> None:
    with pytest.raises(BadRow) as bad:
        record({**IN_OUT, "input_output": tests}, **READS)
    assert bad.value.reason.startswith(why)


def test_published_solutions_pass_the_tests_of_their_rows_and_others_do_not() -> None:
    method = "class Solution:\n    def add(self, a, b):\n        return a + b"
    calls = {"fn_name": "add", "inputs": [[1, 2], ["a", "b"]], "outputs": [3, "ab"]}
    rows = [
        {**IN_OUT, "input_output": {"inputs": ["1 2", "3 4"], "outputs": ["3", "7"]}},
        {**IN_OUT, "solutions": [method], "input_output": calls, "starter_code": "class Solution:\n    pass"},
    ]
    tasks = []
    for row in rows:
        made = record(row, **READS)
        for program in (made.completion, "print(3)"):
            tasks.append(Task(grader="code", completion=program or "", record=Answered(meta=made.meta)))
    limits = SandboxLimits(cpu_s=2, wall_s=20, memory_mb=512, file_mb=2)
    with GradingPool(graders=["code"], workers=2, limits=limits) as pool:
        assert [one.mark for one in pool.map(tasks)] == [1, 0, 1, 0]
