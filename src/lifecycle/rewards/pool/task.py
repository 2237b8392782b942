"""What is asked of a worker, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lifecycle.rewards.record import Answered

MARKED: Literal["marked"] = "marked"
FAILED: Literal["failed"] = "failed"
TIMED_OUT: Literal["timed_out"] = "timed_out"
State = Literal["marked", "failed", "timed_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A completion that `grader` (a name) is to mark."""

    grader: str
    completion: str
    record: Answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a task. mark: 0 to 1, where it is marked. text: what went wrong, where it is not.

    failed: the grader raised, or its worker ended, through no fault of the completion that is known of. timed_out: it
    took more time or memory than it may.
    """

    state: State
    mark: float | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkerStart:
    """What a worker is started with. parent: the process id of the pool. readable: folders that it needs to read.
    packages: of them, those where Python finds packages. scratch: its folder, where it gets no file system of its own.
    graders: what it marks with, so that their libraries are loaded once. namespaces: whether to ask for them. Of a
    worker of the user's own functions parent, limits and graders are all that count."""

    parent: int
    limits: Mapping[str, Any]
    readable: Sequence[str]
    packages: Sequence[str]
    scratch: str
    graders: Sequence[str]
    namespaces: bool
