"""A model's life from stage to stage: each starts from what the one before left, and learns."""

import json
from pathlib import Path

import pytest

from lifecycle import config
from lifecycle.loggers import read_metrics
from lifecycle.run import run

COMMON = [
    *("model.layers=2", "model.width=48", "model.heads=3", "model.kv_heads=1", "model.head_dim=16"),
    *("model.ffn_width=96", "data.shuffle_buffer=200", "stage.max_steps=10", "stage.global_batch_tokens=2048"),
    *("stage.sequence_length=128", "checkpoint.every_steps=10", "validation.every_steps=5"),
    *("validation.tokens=2000", "hardware.compile=false", "hardware.workers=0", "logger=csv"),
]


def go(*words: str) -> Path:
    """Run a stage; its folder."""
    child = any(word.startswith("init_from=") for word in words)
    common = [word for word in COMMON if not (child and word.startswith("model."))]
    run(config.compose([*common, *words]))
    name = next(word.removeprefix("run=") for word in words if word.startswith("run="))
    assert json.loads(Path("outputs", name, "run.json").read_text())["status"] == "finished"
    return Path("outputs", name)


def falls(folder: Path) -> bool:
    """Whether the training loss of the last three steps is below that of the first three."""
    losses = [loss for loss in read_metrics(folder / "metrics.csv")["train/loss"] if loss is not None]
    return sum(losses[-3:]) < sum(losses[:3])


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two domains of real text: this Python's documentation, and its code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lifecycle.runs.results.write_report", lambda folder: None)


def test_each_stage_goes_on_from_the_one_before(texts: None) -> None:
    prose = ["data=python_stdlib", "~data.sources.code", "data.sources.prose.max_rows=200"]
    tokenizer = "data.tokenizer={vocab_size: 512, digits: 1, max_bytes: 100000}"
    first = go("stage=pretrain", *prose, tokenizer, "run=pretrained")
    code = ["data=python_stdlib", "~data.sources.prose", "data.sources.code.max_rows=200"]
    # so short a parent has learned little: a rate like its own, and half of its data again
    rate = ["stage.peak_ratio=0.5", "stage.replay.share=0.5"]
    second = go("stage=midtrain", *code, *rate, "init_from=pretrained", "run=midtrained")
    assert falls(first) and falls(second)
    told = json.loads((second / "run.json").read_text())
    assert told["parent"]["path"] == str(first.resolve())
    assert set(told["data"]["sources"]) == {"code", "replay.prose"}
    history = json.loads((second / "forgetting.json").read_text())
    assert history["retained"] == ["prose"] and len(history["measurements"]) == 3
