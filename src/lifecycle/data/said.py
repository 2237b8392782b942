"""Lines on stderr that are said once, however often a process comes by."""

from __future__ import annotations

import os
import sys
from functools import cache

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # as launchers number processes


def say_read(where: str, what: object) -> None:
    """What the key `where` stands for: files read, files passed over. The first process of a run says it."""
    if next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0":
        say_once(f"{where}: {what}\n")


@cache
def say_once(line: str) -> None:
    """Write `line`, unless this process has."""
    sys.stderr.write(line)
