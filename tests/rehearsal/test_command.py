"""Whole runs of the command line on a rehearsed GPU: from the text to the exported model, its report, and its child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.run.cli import TOY, make_place

ROOT = Path(__file__).parents[2]
GPU = ("hardware=gpu", "hardware.compile=false", "hardware.precision=bf16", "hardware.attention=sdpa")
SHORT = ("stage.max_steps=6", "checkpoint.every_steps=3", "validation.every_steps=3", "validation.tokens=2000")


def rehearse(place: Path, *overrides: str) -> dict[str, int]:
    """One command; where the host waited for the device, and how often."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "WAITS": str(place / "waits.json"),
    }
    command = [sys.executable, "-m", "tests.rehearsal.command", "--config-dir", "conf", *overrides]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    waits: dict[str, int] = json.loads((place / "waits.json").read_text())
    return waits


def test_a_run_goes_from_text_to_an_exported_model(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    waits = rehearse(place, *TOY, *GPU, *SHORT, "run=first")
    assert json.loads((place / "outputs/first/run.json").read_text())["status"] == "finished"
    assert waits["stages/step/metrics.py flush"] >= 6  # a row was logged every step
    assert waits["rollout/decode_step.py run"] > 0  # samples are drawn there, not on the host


@pytest.mark.slow
def test_its_child_and_its_sampling_run_there_too(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    rehearse(place, *TOY, *GPU, *SHORT, "run=first", "logging.every_steps=3", "optimizer=muon")
    more = ("run=second", "init_from=first", "stage.ewc={strength: 1.0, rows: 4}", "optimizer=muon")
    inherits = [word for word in TOY if not word.startswith("model.")]
    waits = rehearse(place, "stage=midtrain", *inherits, *GPU, *SHORT, *more)
    assert json.loads((place / "outputs/second/run.json").read_text())["status"] == "finished"
    assert waits["stages/step/collectives.py any_rank"] >= 6
    waits = rehearse(
        place, "stage=generate", "init_from=second", *GPU[:3], "stage.prompt=the cat", "stage.max_new_tokens=5"
    )
    assert waits["rollout/decode_step.py run"] <= 5
