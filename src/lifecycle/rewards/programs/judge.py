"""The process that knows the tests of a program: it runs them, and asks the program's own process for values.

    asserts        "assert f(2) == 4"            run as they stand, f being asked for
    a check        "def check(candidate): ..."   called with what the record's entry point names
    in and out     inputs, outputs               what the program writes for each input

Its exit code is the verdict. A program that ends, patches, prints or raises whatever does so in its own process.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lifecycle.rewards.programs.wire import Gone, Peer
from lifecycle.rewards.programs.zygote import ERRORS, Ended, Zygote
from lifecycle.rewards.sandbox import kernel, seccomp
from lifecycle.rewards.sandbox.limits import OverLimit, SandboxLimits

PASSED, WRONG, OVER, FAULTY = 70, 71, 72, 73
"""Exit codes; no other process and no end by chance gives the first."""
CHECK = "check"
HELPERS = frozenset(
    "bisect cmath collections copy datetime decimal fractions functools heapq itertools math operator random re "
    "statistics string sys typing".split()
)
"""Modules that tests use as the program imports them."""


@dataclass(frozen=True, kw_only=True)
class Tests:
    """Of a program. setup: executed before `asserts`. entry_point: what `check` is called with, where they define it.
    inputs, outputs: of programs that read and write, in pairs."""

    setup: str = ""
    asserts: Sequence[str] = ()
    entry_point: str = ""
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()


def passes(program: str, tests: Tests, zygote: Zygote) -> bool:
    """Whether a program passes all of its tests, judged in a process of its own. Raises OverLimit where it takes more
    than it may, ValueError for tests that are at fault themselves."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            kernel.die_with_parent(parent)
            for fd in (0, 1):  # the pool's
                os.dup2(ERRORS, fd)
            seccomp.forbid(program=True)
            code = _verdict(program, tests, zygote)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == OVER:
        raise OverLimit
    if code == -signal.SIGPROF:  # in the middle of words with the zygote: both are replaced, with the worker
        os.kill(os.getpid(), signal.SIGPROF)
    if code not in (PASSED, WRONG):
        raise ValueError(f"the tests cannot be run, or ask nothing of the program (code {code})")
    return code == PASSED


def _verdict(program: str, tests: Tests, zygote: Zygote) -> int:
    signal.setitimer(
        signal.ITIMER_PROF, zygote.limits.cpu_s
    )  # tests of what a program returned may take their time too
    if tests.inputs:
        return _writes(program, tests, zygote)
    try:
        codes = [compile(part, "<tests>", "exec") for part in (tests.setup, *tests.asserts)]
    except SyntaxError:
        return FAULTY
    peer = Peer(zygote.begin(program), may_ask_all=False)
    asked, gone = None, False
    try:
        asked = _hold(codes, peer, tests)
    except Gone:
        gone = True
    except BaseException:  # an assertion, or whatever the program raised
        pass
    ended = zygote.end()
    if asked is None:
        return OVER if gone and _over(ended, zygote.limits) else WRONG
    return PASSED if asked else FAULTY


def _hold(codes: Sequence[Any], peer: Peer, tests: Tests) -> int:
    """Run the tests, which raise where the program fails; how much was asked of it."""
    space: dict[str, Any] = {"__name__": "tests", **_named(peer.answer(), tests)}
    for code in codes:
        exec(code, space)
    if tests.entry_point and CHECK in space:
        space[CHECK](space[tests.entry_point])
    return peer.asked


def _named(names: Sequence[tuple[str, str, str, Any]], tests: Tests) -> dict[str, Any]:
    """What the program defines, for tests to call. What is of Python's own helpers is taken afresh. A name that Python
    has built in is the program's only where the tests call no other of its names: a `set` that equals everything is no
    test passed."""
    called = {node.func.id for node in _nodes(tests) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    called.add(tests.entry_point)
    built_in = {name for name, *_ in names if hasattr(builtins, name)}
    own = bool(called & ({name for name, *_ in names} - built_in))
    found = {}
    for name, home, attribute, held in names:
        if name in built_in and own:
            continue
        if home.lstrip("_") in HELPERS:
            module = importlib.import_module(home.lstrip("_"))
            found[name] = getattr(module, attribute, None) if attribute else module
        elif attribute or not home:  # another module is nothing to test with
            found[name] = held
    return found


def _nodes(tests: Tests) -> list[ast.AST]:
    return [node for part in (tests.setup, *tests.asserts) for node in ast.walk(ast.parse(part))]


def _writes(program: str, tests: Tests, zygote: Zygote) -> int:
    """Of a program that reads and writes. Space at the ends of lines, and empty lines at the end, are nothing."""
    for given, wanted in zip(tests.inputs, tests.outputs, strict=True):
        ended = zygote.run(program, given)
        if _over(ended, zygote.limits):
            return OVER
        if ended.status != 0 or _lines(ended.written or "") != _lines(wanted):
            return WRONG
    return PASSED


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _over(ended: Ended, limits: SandboxLimits) -> bool:
    """Whether the kernel ended a program for its time. It counts that in ticks: of a program that shared its core, what
    it tells afterwards was seen to be a third less."""
    return ended.status < 0 and ended.cpu_s > limits.cpu_s / 2
