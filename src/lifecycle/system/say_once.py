"""Lines that a run writes to stderr once, however often this is called."""

from __future__ import annotations

import os
import sys

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # as launchers number processes
_said: set[str] = set()


def say_read(where: str, what: object) -> None:
    """Write `where: what` (files read, files ignored for a key) once, from the first process of a run."""
    if next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0":
        say_once(f"{where}: {what}\n")


def say_once(line: str, about: str | None = None) -> None:
    """Write `line`, unless this run has said it, or another line `about` the same."""
    if (about or line) not in _said:
        _said.add(about or line)
        sys.stderr.write(line)


def begin_anew() -> None:
    """Forget what was written: another run begins in this process."""
    _said.clear()
