"""Programming tasks with the tests that a solution must pass, in the three forms that published sets have.

asserts    a text that defines `check`, or a list of assert statements, which is shown with the task
in, out    {inputs, outputs}, also as JSON text: what a program reads and what it has to write, one of each a test
calls      the same with `fn_name`: arguments of a function and what it returns, which become assert statements
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lifecycle.data.read.forms.fields import Fields, parsed, unpacked
from lifecycle.data.read.row import BadRow


def code_problem(row: Fields) -> dict[str, Any]:
    """A programming task, a solution where the row has one, and in `meta` its tests.

    A solution that begins with a space continues the text of the prompt, which is in `meta` too where it begins the
    function.
    """
    task = row.text("prompt", strip=False).replace("\r\n", "\n")
    tests = row.required("tests")
    code = _solution(row)
    if code[:1].isspace():
        code = task + code
    entry_point = row.text_if_there("entry_point")
    meta: dict[str, Any] = {
        "setup": row.text_if_there("setup", strip=False).replace("\r\n", "\n"),
        "entry_point": entry_point,
    }
    shown, name = "", row.name("tests")
    if isinstance(tests, Mapping) or (isinstance(tests, str) and tests.lstrip().startswith("{")):
        meta |= _pairs(parsed(tests, name), name, row.text_if_there("starter_code", strip=False))
    else:
        meta["tests"] = _asserts(tests, name)
        shown = "\n\nThe code must pass these tests:\n" + "\n".join(tests) if isinstance(tests, list) else ""
    if entry_point and re.search(rf"^def {re.escape(entry_point)}\b", task, re.MULTILINE):
        meta["begun"] = task  # what is asked for goes on with it
    return {
        "prompt": f"{task.strip()}{shown}".strip(),
        "completion": code or None,
        "answer": code or None,
        "meta": meta,
    }


def _solution(row: Fields) -> str:
    """The text of a solution, or the first of a list of them."""
    value = row.look("code")
    if isinstance(value, str) and value.lstrip().startswith('["'):
        value = unpacked(value, row.name("code"))
    if isinstance(value, list):
        value = next((one for one in value if isinstance(one, str) and one.strip()), "")
    if value is not None and not isinstance(value, str):
        raise BadRow(f"wrong type of {row.name('code')}: {type(value).__name__}")
    return (value or "").replace("\r\n", "\n").rstrip()


def _asserts(tests: Any, name: str) -> list[str]:
    if not isinstance(tests, list | str):
        raise BadRow(f"wrong type of {name}: {type(tests).__name__}")
    if not tests or not all(isinstance(test, str) for test in tests):
        raise BadRow(f"no tests in {name}")
    return list(tests) if isinstance(tests, list) else [tests]


def _pairs(tests: Mapping[str, Any], name: str, starter: str) -> dict[str, Any]:
    """What a program reads and writes, or asserts about a function of it."""
    given, wanted = (tests.get(f"{kind}s", tests.get(kind)) for kind in ("input", "output"))
    if not isinstance(given, list) or not isinstance(wanted, list) or len(given) != len(wanted):
        raise BadRow(f"{name} has no equally long lists inputs and outputs")
    if not given:
        raise BadRow(f"no tests in {name}")
    if function := tests.get("fn_name"):
        called = f"Solution().{function}" if re.search(r"^class Solution\b", starter, re.MULTILINE) else function
        return {"tests": [_assert(called, *pair, name) for pair in zip(given, wanted, strict=True)]}
    return {"inputs": [_text(one, name) for one in given], "outputs": [_text(one, name) for one in wanted]}


def _assert(called: str, arguments: Any, wanted: Any, name: str) -> str:
    if not isinstance(arguments, list):
        raise BadRow(f"arguments of a call in {name} are no list")
    return f"assert {called}({', '.join(map(repr, arguments))}) == {wanted!r}"


def _text(value: Any, name: str) -> str:
    """A text, or the lines of a list of texts."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise BadRow(f"wrong type of a test in {name}: {type(value).__name__}")
    return value
