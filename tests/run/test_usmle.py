"""Reinforcement learning on the real rows of medical examinations, shrunk: three steps of the preset made for them."""

import json
from pathlib import Path

import pytest
from tests.real import REAL, needs_real

from lifecycle import config
from lifecycle.loggers import read_metrics
from lifecycle.run import run

MODEL = [
    *("model.layers=2", "model.width=32", "model.heads=2", "model.kv_heads=1", "model.head_dim=16"),
    *("model.ffn_width=64", "data.tokenizer.vocab_size=512", "stage.global_batch_tokens=1024"),
]
SMALL = [
    *("data=offline/usmle", f"data.root={REAL / 'med'}", "stage.max_epochs=null", "stage.sequence_length=512"),
    *("hardware.compile=false", "hardware.workers=0", "hardware.peak_tflops=1", "hardware.precision=fp32"),
    *("logger=csv", "logging.every_steps=1", "validation.every_steps=0", "checkpoint.every_steps=0", "guard=null"),
]


@needs_real
@pytest.mark.slow
def test_three_steps_of_the_preset_on_real_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lifecycle.runs.results.write_report", lambda folder: None)
    run(config.compose([*SMALL, *MODEL, "stage.max_steps=2", "run=parent"]))
    words = ["stage=grpo_usmle", "init_from=parent", "run=taught", "stage.max_steps=3", "stage.prompts_per_step=4"]
    words += ["stage.samples_per_prompt=4", "stage.sampling.max_new_tokens=16", "hardware.micro_batch_tokens=4096"]
    words += ["stage.preflight.prompts=0"]
    run(config.compose([*SMALL, *words]))
    told = read_metrics(tmp_path / "outputs/taught/metrics.csv")
    assert told["step"][-1] == 3
    assert json.loads((tmp_path / "outputs/taught/run.json").read_text())["status"] == "finished"
    written = config.resolved(config.compose([*SMALL, *words]))
    assert written["data"]["plain_prompt"].endswith("Answer: ")
    deviations = [value for value in told["policy/ratio_max_deviation"] if value is not None]
    assert len(deviations) == 3 and max(deviations) < 1e-4
