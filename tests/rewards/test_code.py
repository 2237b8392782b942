"""Programs and their tests: right ones pass in every form, and none passes for what it does to its tests."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.real import rows

from lifecycle.rewards.pool.pool import GradingPool
from lifecycle.rewards.pool.task import Outcome, Task
from lifecycle.rewards.programs.code import code, program
from lifecycle.rewards.record import Answered
from lifecycle.rewards.sandbox.limits import SandboxLimits

LIMITS = SandboxLimits(cpu_s=1, wall_s=30, memory_mb=512, file_mb=2)
DOUBLE = {"tests": ["assert f(2) == 4", "assert f([1]) == [1, 1]"]}
CHECK = {
    "tests": ["def check(candidate):\n    assert candidate('ab') == 'ba'\n    assert candidate('') == ''\n"],
    "entry_point": "back",
    "begun": "from typing import List\n\ndef back(text: str) -> str:\n    '''Backwards.'''\n",
}
SUM = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7"]}
RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("def f(x): return x * 2", DOUBLE),
    ("Here it is:\n```python\ndef f(x):\n    return x + x\n```\nIt doubles.", DOUBLE),
    ("<think>```python\ndef f(x): return 1\n```</think>\n```\nf = lambda x: 2 * x\n```", DOUBLE),
    ("```python\ndef f(x): return x * 2\n", DOUBLE),
    ("class Own(list): pass\ndef f(x): return Own(x * 2) if isinstance(x, list) else x * 2", DOUBLE),
    ("print('PASSED')\nimport sys\nsys.setrecursionlimit(10**6)\ndef f(x): return x * 2", DOUBLE),
    ("import threading\nthreading.Thread(target=print).start()\ndef f(x): return x * 2", DOUBLE),
    ("    return text[::-1]", CHECK),
    ("def back(text):\n    return text[::-1]", CHECK),
    ("```python\ndef back(text):\n    return text[::-1]\n```\n```python\nprint(back('ab'))\n```", CHECK),
    ("a, b = map(int, input().split())\nprint(a + b)", SUM),
    ("import sys\nsys.stdout.write(str(sum(map(int, open(0).read().split()))) + '\\n\\n')\nsys.exit()", SUM),
    ("def total(a, b): return a + b", {"tests": ["assert total(1, 2) == 3", "assert set([total(0, 0)]) == {0}"]}),
    ("def sum(a, b): return a - b", {"tests": ["assert sum(3, 2) == 1"]}),
    ("def f(x):\n    x.sort()", {"tests": ["x = [2, 1]\nf(x)\nassert x == [1, 2]"]}),
    ("def f(g): return g(3)", {"tests": ["assert f(lambda x: x + 1) == 4"]}),
    ("def f(n):\n    yield from range(n)", {"tests": ["assert list(f(3)) == [0, 1, 2]"]}),
    ("def f(): raise ValueError", {"tests": ["try:\n    f()\n    assert False\nexcept ValueError: pass"]}),
    ("class P:\n    def __init__(self, a): self.a = a\ndef f(p): return p.a", {"tests": ["assert f(P(3)) == 3"]}),
    ("def f(): return '\\ud800\\u00e9\U0001f600', float('inf'), 10**5000", {"tests": ["assert len(f()) == 3"]}),
]
NEVER = "class A:\n    __eq__ = __le__ = __bool__ = lambda *a: True\n    __hash__ = None\n"
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("def f(x): return x", DOUBLE),
    ("", DOUBLE),
    ("def f(x: return", DOUBLE),
    ("def g(x): return x * 2", DOUBLE),
    ("\0", DOUBLE),
    ("def f(x): return x * 2\nraise SystemExit(0)", DOUBLE),
    ("import os\nos._exit(0)", DOUBLE),
    ("import os\nos._exit(70)", DOUBLE),
    ("import os\ndef f(x): os._exit(70)", DOUBLE),
    ("import sys\ndef f(x): sys.exit(0)", DOUBLE),
    (f"{NEVER}def f(x): return A()", DOUBLE),
    (f"{NEVER}f = A", DOUBLE),
    ("class A(int):\n    __eq__ = lambda *a: True\ndef f(x): return A(5)", DOUBLE),
    ("class A(list):\n    __eq__ = lambda *a: True\ndef f(x): return A()", DOUBLE),
    ("import builtins\nbuiltins.AssertionError = builtins.Exception = ValueError\ndef f(x): raise ValueError", DOUBLE),
    ("def f(x): raise AssertionError", DOUBLE),
    ("def f(x):\n    try:\n        raise KeyboardInterrupt\n    except BaseException:\n        return None", DOUBLE),
    ('print(\'["marked", 1.0, ""]\')\ndef f(x): return x', DOUBLE),
    (
        "import os, struct, json\nm = json.dumps(['marked', 1.0, '']).encode()\nfor n in range(64):\n    try:\n"
        "        os.write(n, struct.pack('<I', len(m)) + m)\n    except OSError: pass\ndef f(x): return x",
        DOUBLE,
    ),
    (
        "import gc, sys\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'tests' in o: f = lambda x: 2 * x",
        DOUBLE,
    ),
    ("def f(x): return f(x)", DOUBLE),
    ("def f(x):\n    y = []\n    y.append(y)\n    return y", DOUBLE),
    ("def f(x): return 'a' * 10**10", DOUBLE),
    ("x = bytearray(10 * 2**30)\ndef f(x): return x * 2", DOUBLE),
    ("check = lambda candidate: None\nback = 1", CHECK),
    ("def back(text): return text\ndef check(candidate): pass", CHECK),
    ("def total(a, b): return 5\ndef set(x): return 0", {"tests": ["assert set([total(1, 2)]) == set([3])"]}),
    ("isclose = lambda *a: True\ndef f(): return 1", {"tests": ["import math\nassert math.isclose(f(), 2)"]}),
    ("import os\nprint(3)\nos._exit(1)", SUM),
    ("print(3)", SUM),
    ("while True: print('a' * 10**6)", SUM),
]
OVER: list[tuple[str, dict[str, Any]]] = [
    ("while True: pass", DOUBLE),
    ("def f(x):\n    while True: pass", DOUBLE),
    ("def f(x):\n  while True:\n    try:\n      while True: pass\n    except BaseException: pass", DOUBLE),
    ("import re\ndef f(x): return re.match('(a|a)*b', 'a' * 40)", DOUBLE),
    (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except Exception: pass\nwhile True: pass",
        DOUBLE,
    ),
    ("while True: pass", SUM),
    ("def f(x): return 9 ** 9 ** 9", DOUBLE),
]  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool(graders=["code"], workers=2, limits=LIMITS) as made:
        yield made


def outcomes(pool: GradingPool, cases: list[tuple[str, dict[str, Any]]]) -> list[Outcome]:
    return pool.map([Task(grader="code", completion=one, record=Answered(meta=meta)) for one, meta in cases])


def test_programs_that_pass_their_tests_are_right(pool: GradingPool) -> None:
    assert [(c, o) for (c, _), o in zip(RIGHT, outcomes(pool, RIGHT), strict=True) if o.mark != 1] == []


def test_programs_that_fail_or_forge_are_wrong_and_nothing_else(pool: GradingPool) -> None:
    found = outcomes(pool, WRONG)
    assert [(c, o) for (c, _), o in zip(WRONG, found, strict=True) if (o.state, o.mark) != ("marked", 0)] == []


@pytest.mark.parametrize("cases", [OVER[1:3], pytest.param(OVER, marks=pytest.mark.slow)])
def test_programs_without_an_end_are_counted_as_such_by_their_own_time(
    pool: GradingPool, cases: list[tuple[str, dict[str, Any]]]
) -> None:
    # the kernel ends the program alone, and the worker says so
    assert {(one.state, one.text) for one in outcomes(pool, cases)} == {("timed_out", "OverLimit")}


def test_results_keep_the_order_of_the_tasks_whatever_ends_first(pool: GradingPool) -> None:
    slow = ("import time\ntime.sleep(0.3)\ndef f(x): return x * 2", DOUBLE)
    cases = [slow, *RIGHT[:1] * 3, *WRONG[:1] * 3, slow]
    assert [one.mark for one in outcomes(pool, cases)] == [1, 1, 1, 1, 0, 0, 0, 1]


def test_tests_that_ask_nothing_or_are_no_python_are_a_failure_of_the_data(pool: GradingPool) -> None:
    cases = [("x = 1", {"tests": ["assert True"]}), ("x = 1", {"tests": ["assert ("]})]
    assert [one.state for one in outcomes(pool, cases)] == ["failed", "failed"]


def test_random_numbers_and_the_order_of_sets_are_the_same_each_time(pool: GradingPool) -> None:
    with GradingPool(graders=["code"], workers=1, limits=LIMITS) as other:
        cases = [("import random\nprint(random.random())", {"inputs": [""], "outputs": ["0.8444218515250481"]})] * 2
        assert [one.mark for one in [*outcomes(pool, cases), *outcomes(other, cases)]] == [1, 1, 1, 1]
        asked = "import random\ndef f(): return random.random(), hash('a'), list({'a', 'b', 'c', 'd', 'e'})"
        wanted = subprocess.run(
            [sys.executable, "-c", f"import random; random.seed(0)\n{asked}\nprint(f())"],
            env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        same = [(asked, {"tests": [f"assert f() == {wanted}"]})]
        assert [one.mark for one in [*outcomes(pool, same), *outcomes(other, same)]] == [1, 1]


def test_programs_never_run_in_this_process() -> None:
    with pytest.raises(RuntimeError, match="in a worker of a pool alone"):
        code("def f(x): return 2 * x", Answered(meta=DOUBLE))


def test_the_program_of_a_completion() -> None:
    begun = Answered(meta={"begun": "def f(x):\n", "entry_point": "f"})
    assert program("    return x", begun) == "def f(x):\n    return x"
    assert program("<think>never ends", Answered()) == ""
    assert program("<answer>\n```py\na\n```\n</answer>", Answered()) == "a\n"
    assert program("```bash\nls\n```\n```python\na\n```", Answered()) == "a\n"
    assert program("```\n" * 50_000, Answered()) == ""


def unix(text: str) -> str:
    return text.replace("\r\n", "\n")


@pytest.mark.slow
def test_every_published_solution_passes_its_tests() -> None:
    cases = [
        (unix(row["code"]), {"tests": row["test_list"], "setup": unix(row["test_setup_code"])})
        for name in ("train", "validation", "test_part1", "prompt")
        for row in rows(f"code/mbpp.{name}")
    ]  # fmt: skip
    for row in rows("code/humaneval.test"):
        meta = {"tests": [row["test"]], "entry_point": row["entry_point"], "begun": row["prompt"]}
        cases += [(row["canonical_solution"], meta), (row["prompt"] + row["canonical_solution"], meta)]
    limits = SandboxLimits(cpu_s=20, wall_s=120, memory_mb=1024, file_mb=8)
    with GradingPool(graders=["code"], workers=2, limits=limits) as pool:
        right = outcomes(pool, cases)
        empty = outcomes(pool, [("    pass" if "begun" in meta else "pass", meta) for _, meta in cases])
    assert [(c, o) for c, o in zip(cases, right, strict=True) if o.mark != 1] == []
    assert {one.mark for one in empty} == {0.0} and len(cases) == 1202
