"""Learning from reasoning traces, killed at many moments, ends as the run that nobody touched."""

import json
import random
from pathlib import Path

import pytest
from tests.run.cli import assert_same_run, facts, kill_after, lifecycle, make_texts

REASON = (
    "stage=distill_reason",
    "init_from=whole",
    "data=files",
    "data.sources.mine.path=thoughts.jsonl",
    "stage.peak_ratio=0.3",
    "stage.max_steps=24",
    "stage.max_epochs=null",
    "checkpoint.every_steps=2",
    "validation.every_steps=8",
    "validation.answers=0",
)


def thoughts(place: Path) -> None:
    """Conversations that think first."""
    rows = [
        {"prompt": text[:20], "completion": f"<think>{text[20:40]}</think>{text[40:60]}"}
        for text in make_texts("thoughts", 120, 20)
    ]
    (place / "thoughts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_a_run_on_traces_killed_at_ten_moments_ends_as_it_would_have(place: Path, whole: Path) -> None:
    thoughts(place)
    lifecycle(place, "run=untouched", *REASON)
    run, draw = place / "outputs/killed", random.Random(5)
    for number in range(10):
        soon = number % 2 > 0
        kill_after(place, "run=killed", *REASON, checkpoints=not soon, wait=draw.uniform(0.1, 1.5) if soon else 0.0)
    lifecycle(place, "run=killed", *REASON)
    assert facts(run)["resumed"] >= 4
    assert_same_run(run, place / "outputs/untouched")
