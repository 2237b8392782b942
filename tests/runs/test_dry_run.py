"""What a dry run says of passes and shares is what the run would do."""

import json
import re
from pathlib import Path

import pytest

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.run import run
from lifecycle.runs.dry_run import dry_run
from lifecycle.runs.plan import make_plan

TEXT = "the cat sat on a mat and then it ran far away from that old grey house near some river bank "


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sources of the same size."""
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        rows = [json.dumps({"text": f"{name} {number} {TEXT * 3}"}) + "\n" for number in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, float]:
    """The share of every source that the dry run of `words` prints, in percent."""
    cfg = config.compose(
        [
            "data=files",
            "~data.sources.mine",
            "+data.sources.first={path: first.jsonl}",
            "+data.sources.second={path: second.jsonl}",
            "dry_run=true",
            "stage.max_tokens=null",
            "stage.max_steps=10",
            "stage.global_batch_tokens=1024",
            "stage.sequence_length=128",
            "hardware.peak_tflops=1",
            *words,
        ]
    )
    dry_run(make_plan(cfg))
    lines = [re.split(r"\s{2,}|[│|]", line.strip()) for line in capsys.readouterr().out.splitlines()]
    return {
        cells[0].strip(): float(found[0])
        for cells in lines
        if cells[0].strip() in ("first", "second") and (found := re.findall(r"([\d.]+) ?%", " ".join(cells)))
    }


def test_shares_follow_the_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "data.sources.first.weight=3") == {"first": 75, "second": 25}


def test_shares_follow_the_weights_of_the_phases(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "[{at_steps: 0, weights: {first: 1.0}}, {at_steps: 6, weights: {first: 0.5, second: 0.5}}]"
    assert told(capsys, f"stage.phases={lines}") == {"first": 80, "second": 20}


def test_a_source_that_is_measured_only_gets_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "data.sources.second.weight=0") == {"first": 100, "second": 0}


def test_rows_longer_than_the_model_are_refused_as_the_run_refuses_them(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=tiny", "model.max_positions=64"]
    with pytest.raises(UserError, match=r"sequence_length is 128, more than model.max_positions=64: shorten"):
        told(capsys, *words)
    longer = ["data=files", "data.sources.mine.path=first.jsonl", "stage.sequence_length=128", "stage.max_steps=2"]
    with pytest.raises(UserError, match="more than model.max_positions=64"):
        run(config.compose([*longer, "stage.max_tokens=null", "stage.global_batch_tokens=1024", *words]))
