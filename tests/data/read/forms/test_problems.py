"""Laws of programs that are asked for; choices, word problems and questions: tests/data/read/test_formats.py."""

from typing import Any

import pytest

from lifecycle.batch import Record
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.in_words import as_text
from lifecycle.data.read.row import BadRow
from lifecycle.data.read.spec import SourceSpec

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
