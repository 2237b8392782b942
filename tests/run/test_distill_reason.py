"""Learning from reasoning traces, end to end: killed, and on two ranks; and distillation on two ranks."""

import json
import random
from pathlib import Path

import pytest
from tests.run.cli import assert_same_run, facts, kill_after, lifecycle, make_texts, metrics

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
DISTILL = ("stage=distill", "stage.view=text", "stage.teacher=whole", "stage.max_steps=12", "validation.every_steps=6")
SMALLER = ("model.layers=1", "model.width=16", "model.heads=1", "model.ffn_width=32")


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


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["distill", "reason"])
def test_two_ranks_learn_what_one_does(place: Path, whole: Path, name: str, strategy: str) -> None:
    thoughts(place)
    words = (*REASON, "stage.max_steps=8") if name == "reason" else (*DISTILL, *SMALLER)
    words = (*words, "validation.tokens=2000", "hardware.workers=1")
    one, two = place / f"outputs/{name}-one", place / f"outputs/{name}-{strategy}"
    lifecycle(place, f"run={one.name}", *words)
    lifecycle(place, f"run={two.name}", *words, "hardware.devices=2", f"hardware.strategy={strategy}")
    here, there = metrics(one), metrics(two)
    assert here["step"] == there["step"]
    for metric in ("train/loss", "valid/loss"):
        assert [v or 0.0 for v in here[metric]] == pytest.approx([v or 0.0 for v in there[metric]], rel=1e-4), metric
