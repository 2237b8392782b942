"""The stage of docs/adding_a_stage.md: one module and one YAML, put into a copy of the code, and trained."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/adding_a_stage.md").read_text()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout with the two files of the page, and a file of pairs."""
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        assert not (tmp_path / name).exists(), "nothing else is touched"
        (tmp_path / name).write_text(text)
    rows = ({"prompt": f"Say {n} or not.", "chosen": f"I say {n}.", "rejected": f"No, not {n}!"} for n in range(400))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_stage_of_the_page_learns_from_pairs(place: Path) -> None:
    words = "stage=contrast data=files data.sources.mine.path=pairs.jsonl run=toy data.tokenizer.vocab_size=320"
    small = "layers=1 width=32 heads=1 kv_heads=1 head_dim=32 ffn_width=64"
    words += "".join(f" model.{size}" for size in small.split())
    words += " stage.sequence_length=128 stage.global_batch_tokens=1024 stage.max_steps=12 stage.optimizer.lr=1e-2"
    words += " validation.tokens=2000 validation.every_steps=6 logging.every_steps=1"
    words += " hardware.compile=false hardware.workers=0"
    run = subprocess.run(
        [sys.executable, "-m", "lifecycle", *words.split()],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(place / "src"), "LIFECYCLE_CACHE": str(place / "cache")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    with (place / "outputs/toy/metrics.csv").open() as file:
        measured = [row for row in csv.DictReader(file)]
    losses = [float(row["train/loss"]) for row in measured if row["train/loss"]]
    assert losses[0] == pytest.approx(0.693, abs=0.05)  # log 2: neither answer is the likelier
    assert losses[-1] < 0.5 * losses[0]
    accuracy = [float(row["train/accuracy"]) for row in measured if row.get("train/accuracy")]
    assert 0 <= accuracy[0] <= 1 and accuracy[-1] == 1
    assert float(measured[-1]["valid/mine/accuracy"]) == 1 and "valid/mine/perplexity" not in measured[-1]
    assert "mine accuracy 1.000" in run.stdout + run.stderr and "ppl" not in run.stdout + run.stderr
