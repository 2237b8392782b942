"""What a worker of the pool may use, and how it keeps itself to it."""

from __future__ import annotations

import itertools
import os
import resource
from dataclasses import dataclass

MB = 2**20
OPEN_FILES = 64
THREADS = 32


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """cpu_s: whole seconds of computing for one grader, or for one program; time in which it waits does not count.
    wall_s: seconds after which a worker is killed whatever it does. memory_mb: address space of a process. file_mb: of
    a file, and of all files together where the worker has a file system of its own."""

    cpu_s: int
    wall_s: float
    memory_mb: int
    file_mb: int


class OverLimit(Exception):
    """What was run takes more than it may."""


def hold_to(limits: SandboxLimits) -> None:
    """Limit this process, for good, and those it starts."""
    _limit(resource.RLIMIT_AS, limits.memory_mb * MB)
    _limit(resource.RLIMIT_FSIZE, limits.file_mb * MB)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_MEMLOCK, 0)
    _limit(resource.RLIMIT_MSGQUEUE, 0)


def hold_program_to(limits: SandboxLimits, *, may_have_threads: bool) -> None:
    """Limit a process that runs a program to its time too; the kernel kills it behind that. may_have_threads: that the
    limit of processes can be above none, since another layer forbids new processes."""
    _limit(resource.RLIMIT_CPU, limits.cpu_s)
    _limit(resource.RLIMIT_NPROC, THREADS if may_have_threads else 0)


def _limit(what: int, value: int) -> None:
    """The lower one of `value` and what holds already."""
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def close_files(keep: set[int]) -> None:
    """Close every file of this process but `keep`."""
    edges = [-1, *sorted(keep), max(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0])]
    for before, behind in itertools.pairwise(edges):
        if before + 1 < behind:  # Python takes an empty range that begins with 0 for all there are
            os.closerange(before + 1, behind)
