"""The processes of a run, as the system's table lists them."""

import subprocess
import time


def processes(group: int) -> dict[int, str]:
    """The command lines of a group's processes, by id, without those that have ended and that nobody waits for."""
    table = subprocess.run(
        ["ps", "-ww", "-eo", "pgid=,pid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(maxsplit=3) for line in table.splitlines()]
    return {int(row[1]): row[-1] for row in rows if int(row[0]) == group and not row[2].startswith("Z")}


def children(pid: int) -> list[int]:
    """The ids of a process's children, oldest first."""
    table = subprocess.run(["ps", "-ww", "-eo", "ppid=,pid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in table.splitlines()]
    return sorted(int(row[1]) for row in rows if int(row[0]) == pid and not row[2].startswith("Z"))


def assert_all_end(*groups: int, seconds: float = 15) -> None:
    """Nothing of the groups is left, at once or soon."""
    until = time.monotonic() + seconds
    while left := {pid: words for group in groups for pid, words in processes(group).items()}:
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.2)
