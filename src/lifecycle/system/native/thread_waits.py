"""How long the threads of a parallel computation on a CPU wait for each other: spinning, or asleep.

A thread of libgomp that has nothing to do spins for milliseconds before it sleeps, which is fastest on a machine that
is free. Beside another busy process it spins on the processor that the thread it waits for needs: a step then takes
ten to twenty times as long. libgomp spins briefly, a thousandth of that, as soon as it manages more threads than there
are processors, and looks at that at every wait, so a second team of threads that only sleeps switches it over at any
time, and back when it has ended. No number changes: the same threads add up the same parts.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch

TASKS = Path("/proc/self/task")
BUSY, FREE = 0.15, 0.05
"""Shares of the time in which a thread wanted to run and could not: from where waits are short, and spin again."""

OWN_CHOICE = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""What a user may have set."""

ENOUGH = 1 << 17
"""Numbers whose sum torch shares out to all threads."""


class ParkedTeam:
    """A team of threads that sleeps: while it is there, all others of the process wait asleep."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __bool__(self) -> bool:
        return self._thread is not None

    def begin(self) -> None:
        """Start the team, unless it is there."""
        if self._thread is None:
            self._end, there = threading.Event(), threading.Event()
            self._thread = threading.Thread(target=_park, args=(self._end, there), daemon=True)
            self._thread.start()
            there.wait()

    def end(self) -> None:
        """End it, if it is there."""
        if self._thread is not None:
            self._end.set()
            self._thread.join()
            self._thread = None


def _park(end: threading.Event, there: threading.Event) -> None:
    room = torch.ones(ENOUGH, device="cpu", dtype=torch.float32)
    room.add_(1)  # the first parallel operation of a thread makes its team
    there.set()
    end.wait()


class Crowding:
    """The share of time in which this process's threads wanted a processor and had none, since the last look."""

    def __init__(self) -> None:
        self._last = _times()

    def look(self) -> float | None:
        """Between 0 and 1; None where the kernel does not say, or nothing ran."""
        last, self._last = self._last, _times()
        shared = self._last.keys() & last.keys()  # threads that were there all the time
        ran, waited = (sum(self._last[t][i] - last[t][i] for t in shared) for i in (0, 1))
        return waited / (ran + waited) if ran + waited > 0 else None


def _times() -> dict[str, tuple[int, int]]:
    """By thread, nanoseconds for which it ran, and for which it could have run and did not."""
    found = {}
    for task in TASKS.glob("*/schedstat"):
        try:
            ran, waited, _ = task.read_text().split()
        except (OSError, ValueError):  # it has ended in between
            continue
        found[task.parent.name] = int(ran), int(waited)
    return found


def can_switch() -> bool:
    """Whether there is anything to switch: several threads, a kernel that counts, and no choice of the user's own."""
    return torch.get_num_threads() > 1 and any(TASKS.glob("*/schedstat")) and not any(map(os.environ.get, OWN_CHOICE))
