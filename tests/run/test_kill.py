"""A run killed at many moments, with kill -9 and no warning, ends as the run that nobody touched, bit for bit."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import yaml
from tests.run.cli import (
    Run,
    assert_same_run,
    facts,
    lifecycle,
    make_place,
    make_texts,
    metrics,
    newest,
    started,
    wait_for,
)
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


CHANGING = (
    "stage=midtrain",
    "data=graded",
    "init_from=parent",
    "curriculum=math",
    "guard.actions=[replay,rate]",
    "guard.replay_max=0.1",  # one raise, and the next action is another
    "guard.watch=0.02",
    "guard.act=0.03",  # early, whatever the first weights are
    "stage.max_steps=120",
    "stage.peak_ratio=1.0",
    "stage.replay.share=0",
    "stage.phases=[{at_steps: 0, sequence_length: 32, rate: 0.5}, {at_steps: 50, sequence_length: 64, rows: 8},"
    " {at_steps: 90, rope_theta: 50000}]",
    "hardware.workers=1",
    "checkpoint.every_steps=3",
    "validation.every_steps=10",
    "validation.tokens=2000",
)


def make_graded(place: Path) -> None:
    """Text with the parent's words in another order, with levels, and a source whose weight jumps."""
    rows = [
        {"text": f"{n} " + "bank river near house grey that " * (2 + n % 9), "level": 1 + n % 5} for n in range(300)
    ]
    (place / "graded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "other.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in make_texts("other", 200, 60)))
    held = {"validation": {"ratio": 0.1, "seed": 1}}
    sources = {
        "graded": {"path": "graded.jsonl", "fields": {"level": "level"}, **held},
        "other": {"path": "other.jsonl", "weight": {"table": {0: 0.2, 0.5: 0.05}}, **held},
    }
    node = {"defaults": ["_engine", "_self_"], "tokenizer": "unused", "shuffle_buffer": 64, "sources": sources}
    (place / "conf/data/graded.yaml").write_text(yaml.safe_dump(node, sort_keys=False))


def boundaries(run: Path) -> dict[str, int]:
    """The steps at which something changes in the run that nobody touched, by what it is."""
    acted = {
        f"{m['action']} at {m['step']}": m["step"] for m in facts(run, "forgetting.json")["measurements"] if m["action"]
    }
    return {"length": 50, "rope": 90, "first level": 36, "second level": 72, "weights": 60, **acted}


def near(run: Path, at: int, *, start: int) -> bool:
    """Whether the start of this number, from 0, has begun and there is a checkpoint close before step `at`."""
    return newest(run) >= at - 3 and facts(run)["resumed"] == start


@pytest.mark.slow
def test_a_run_killed_around_everything_that_changes_is_the_run_that_was_not(tmp_path: Path) -> None:
    place, draw = make_place(tmp_path), random.Random(10)
    make_graded(place)
    lifecycle(place, "run=parent")
    lifecycle(place, "run=whole", *CHANGING)
    changes = boundaries(place / "outputs/whole")
    assert any(name.startswith("replay") for name in changes) and any(name.startswith("rate") for name in changes)
    run = place / "outputs/killed"
    moments = sorted([*changes.values(), *draw.choices(list(changes.values()), k=10)])
    moments = sorted(draw.sample(moments, 10))
    reached = []
    for number, at in enumerate(moments):
        with started(place, "run=killed", *CHANGING, cold=number % 3 == 0) as process:
            wait_for(lambda at=at, n=number: near(run, at, start=n), process)  # type: ignore[misc]
            time.sleep(draw.uniform(0.0, 0.25))  # a few steps: before it, in it, or after it
            assert process.poll() is None, f"it ended by itself: {process.end()}"
            (os.killpg if number % 2 else os.kill)(process.pid, signal.SIGKILL)
            process.end()
        reached.append(newest(run))
    lifecycle(place, "run=killed", *CHANGING)
    print(f"changes: {changes}; killed near {moments}, with these steps saved: {reached}")
    assert facts(run)["resumed"] >= 9
    assert facts(run, "forgetting.json") == facts(place / "outputs/whole", "forgetting.json")
    assert_same_run(run, place / "outputs/whole")
