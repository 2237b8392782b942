"""The schedule before the run: what it shows of a source is what the run would read."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests.data.curriculum.test_buckets import module
from tests.data.curriculum.test_curriculum import curriculum, stages

from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.survey.bucket_sizes import BucketSize, survey_buckets
from lifecycle.estimate import curriculum_table
from lifecycle.estimate.estimate import SourcePlan

TABLE = curriculum(by="field", scale="none", older_share=0.1, stages=stages((0.5, (1.0, 2.0)), (1.0, (2.0, 5.0))))


@pytest.fixture(autouse=True)
def graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"{n:03d} " * 25, "level": 1 + n % 5} for n in range(100)]
    (tmp_path / "graded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def spec(**changes: Any) -> SourceSpec:
    return SourceSpec(path="graded.jsonl", fields={"level": "level"}, validation=None, **changes)


def plan(**changes: Any) -> SourcePlan:
    values: dict[str, Any] = {
        "name": "graded",
        "domain": "graded",
        "share": 0.5,
        "tokens": 10_000.0,
        "available": 4000.0,
    }
    values |= {"epochs": 2.5, "max_epochs": None}
    return SourcePlan(**(values | changes))


def levels(folder: Path, **changes: Any) -> dict[str, list[BucketSize]]:
    specs = {"graded": spec(**changes)}
    return survey_buckets(TABLE, specs, tokenizer=None, root=str(folder), cache=folder / "cache")


def shown(folder: Path, **changes: Any) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(curriculum_table.tables(levels(folder), [plan(**changes)]))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_rows_tokens_and_passes_by_level(tmp_path: Path) -> None:
    easy, hard = (line.split() for line in shown(tmp_path).splitlines() if line.strip().startswith(("1-2", "2-5")))
    # 2 of 5 levels hold 1.6 k of 4 k tokens; half the run all of 10 k, the other half a tenth
    assert easy[:9] == ["1-2", "40", "1.6", "k", "5.5", "k", "3.4", "100%", "10%"]
    assert hard[:9] == ["2-5", "60", "2.4", "k", "4.5", "k", "1.9", "0%", "90%"]
    assert easy[9] == "█" * 10 + "░" * 10 and hard[9] == "█" * 10


def test_a_level_that_is_read_too_often_is_said(tmp_path: Path) -> None:
    (line,) = curriculum_table.warnings(levels(tmp_path), [plan(max_epochs=2.0)])
    assert "level 1-2 of graded would be read 3.4 times" in line
    assert "?" in shown(tmp_path, available=None)


def test_it_is_what_the_run_reads(tmp_path: Path) -> None:
    made = module(tmp_path, sources={"graded": spec(weight=0.25)}, curriculum=TABLE, steps=1001)
    (found,) = levels(tmp_path, weight=0.25).values()
    assert [size.rows for size in found] == [level.rows for level in made.corpus.levels["graded"]]
    shares = made.mix.mean()
    np.testing.assert_allclose([size.mean_share for size in found], list(shares.values()), atol=2e-3)


def test_what_cannot_be_scored_yet_is_shown_by_rank(tmp_path: Path) -> None:
    by_rank = curriculum(by="rarity")  # of tokens, and the tokenizer is not there yet
    (found,) = survey_buckets(
        by_rank, {"graded": spec()}, tokenizer=None, root=str(tmp_path), cache=tmp_path / "cache"
    ).values()
    assert [(size.bucket, size.rows, size.part) for size in found] == [
        ("1-2", None, 0.25),
        ("2-3.5", None, 0.375),
        ("3.5-5", None, 0.375),
    ]
