"""The processes of a run, as the system's table lists them."""

import subprocess
import time


def processes(group: int) -> dict[int, str]:
    """The command lines of a group's processes, by id, without those that have ended and that nobody waits for."""
    rows = [line.split(maxsplit=3) for line in _table("pgid=,pid=,stat=,args=")]
    return {int(row[1]): row[-1] for row in rows if int(row[0]) == group and not row[2].startswith("Z")}


def children(pid: int) -> list[int]:
    """The ids of a process's children, oldest first."""
    rows = [line.split() for line in _table("ppid=,pid=,stat=")]
    return sorted(int(row[1]) for row in rows if int(row[0]) == pid and not row[2].startswith("Z"))


def _table(columns: str) -> list[str]:
    done = subprocess.run(["ps", "-ww", "-eo", columns], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def assert_all_end(*groups: int, seconds: float = 15) -> None:
    """Nothing of the groups is left, at once or soon."""
    until = time.monotonic() + seconds
    while left := {pid: words for group in groups for pid, words in processes(group).items()}:
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.2)
