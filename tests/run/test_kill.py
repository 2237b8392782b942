"""One run killed at 20 moments, with kill -9 and no warning, ends as the run that nobody touched, bit for bit."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from tests.run.cli import Run, assert_same_run, facts, lifecycle, make_place, metrics, newest, started, wait_for
from tests.run.processes import assert_all_end

STEPS = 360
RUN = (
    f"stage.max_steps={STEPS}",
    "hardware.workers=2",
    "checkpoint.every_steps=3",
    "validation.every_steps=20",
    "logging.every_steps=2",
)
KINDS = ["start"] * 5 + ["step"] * 8 + ["saving"] * 7


def being_written(run: Path) -> bool:
    """Whether a checkpoint is half-written at this moment."""
    return any(name.startswith(".staging-step-") for name in os.listdir(run / "checkpoints"))


def wait_for_moment(kind: str, run: Path, draw: random.Random, process: Run, *, start: float) -> None:
    """The moment of the next kill: within the seconds of a start, so many steps later, or while it saves."""
    if kind == "start":
        time.sleep(draw.uniform(0.2, start))
        return
    done, more = newest(run), draw.randint(1, 12)
    wait_for(lambda: newest(run) >= done + more, process)
    if kind == "step":
        time.sleep(draw.uniform(0.0, 0.1))
        return
    wait_for(lambda: being_written(run), process)


def kill_once(place: Path, kind: str, draw: random.Random, *, cold: bool, group: bool) -> tuple[int, bool]:
    """Start the command and kill it; returns its process group, and whether a checkpoint was left half-written."""
    run = place / "outputs" / "killed"
    with started(place, "run=killed", *RUN, cold=cold) as process:
        wait_for_moment(kind, run, draw, process, start=5.0 if cold else 1.5)
        assert process.poll() is None, f"it ended by itself: {process.end()}"
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        assert process.end().code == -signal.SIGKILL
    return process.pid, (run / "checkpoints").is_dir() and being_written(run)


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_is_the_run_that_was_not(tmp_path: Path) -> None:
    place, draw = make_place(tmp_path), random.Random(20)
    lifecycle(place, "run=whole", *RUN)
    run, kinds = place / "outputs" / "killed", draw.sample(KINDS, len(KINDS))
    groups, half_written, reached = [], [], [0]
    for number, kind in enumerate(kinds):
        group, half = kill_once(place, kind, draw, cold=number % 4 < 2, group=number % 2 == 1)
        groups.append(group)
        half_written.append(half)
        reached.append(newest(run))
    lifecycle(place, "run=killed", *RUN)
    print(f"steps saved at the kills: {reached[1:]}; checkpoints left half-written: {sum(half_written)}")
    assert len(groups) == 20 and reached == sorted(reached) and reached[-1] < STEPS
    assert sum(half_written) >= 3
    assert facts(run, "ledger.json")["sources"]["tiny"]["epochs"] > 1
    assert metrics(run)["step"] == list(range(1, STEPS + 1))
    assert_same_run(run, place / "outputs" / "whole")
    assert_all_end(*groups)  # workers whose run was killed
