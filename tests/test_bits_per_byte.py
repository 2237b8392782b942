"""The table of the study of short runs: bits per byte by hand, and seeds compared with themselves."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

STUDIES = Path(__file__).parents[1] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("bits_per_byte")


def finished(run: Path, novels: float, *, status: str = "finished") -> Path:
    """A run of 4,096 tokens: 100 held-out tokens of 2 bits in 100 bytes of textbooks, 300 of `novels` bits in 600."""
    run.mkdir()
    held_out = {"textbooks": {"tokens": 100}, "novels": {"tokens": 300}}
    notes = {"status": status, "tokens": 4096, "seconds": 12.4, "data": {"validation": held_out}}
    (run / "run.json").write_text(json.dumps(notes))
    last: list[object] = [2, 4096, *(2 * math.log(2), 2.0), *(novels * math.log(2), novels / 2)]
    names = [f"valid/{domain}/{name}" for domain in held_out for name in ("loss", "bits_per_byte")]
    lines: list[list[object]] = [["step", "tokens", *names], [1, 2048, *[""] * 4], last]
    (run / "metrics.csv").write_text("".join(",".join(f"{cell}" for cell in line) + "\n" for line in lines))
    return run


def test_all_text_is_the_mean_of_the_domains_by_their_bytes(study: Any, tmp_path: Path) -> None:
    found = study.bits(finished(tmp_path / "plain_s1", novels=3.0))
    assert found == {"textbooks": 2.0, "novels": 1.5, "all": pytest.approx((100 * 2 + 300 * 3) / (100 + 600))}


def test_a_seed_is_compared_with_the_same_seed_and_unfinished_runs_are_left_out(study: Any, tmp_path: Path) -> None:
    values = {"plain_s1": 3.0, "plain_s2": 4.0, "switch_s2": 3.65, "switch_s3": 9.0}
    runs = [finished(tmp_path / name, value) for name, value in values.items()]
    runs.append(finished(tmp_path / "switch_s1", 1.0, status="stopped"))
    lines = study.table(study.kinds(runs)).splitlines()
    assert lines[2] == "| plain | 2 | 4,096 | 12 | 2.0000 ± 0.0000 | 1.7500 ± 0.3536 | 1.7857 ± 0.3030 |  |"
    assert lines[3].startswith("| switch | 2 | 4,096 | 12 | ") and lines[3].endswith(f"| {-300 * 0.35 / 700:+.4f} |")
