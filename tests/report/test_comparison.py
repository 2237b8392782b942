import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from lifecycle.loggers import CsvLogger
from lifecycle.report.__main__ import main
from lifecycle.report.comparison import compare, table, write_comparison


def made(
    folder: Path,
    seed: int,
    share: float,
    *measured: tuple[int, dict[str, float]],
    bits: Mapping[str, float] | None = None,
    **facts: object,
) -> Path:
    """A run of a recipe: `measured` holds steps and perplexities, `bits` the bits per byte."""
    folder.mkdir(parents=True)
    watched = {"callbacks": {"progress": seed == 1}}  # which makes no other recipe
    config = {"run": folder.name, "seed": seed, "stage": {"replay": {"share": share}}, **watched}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"status": "finished", "seconds": 60.0, **facts}))
    logger = CsvLogger(folder=folder)
    for step, perplexities in measured:
        values = {f"valid/{domain}/perplexity": value for domain, value in perplexities.items()}
        values |= {f"valid/{domain}/bits_per_byte": value for domain, value in (bits or {}).items()}
        logger.log_metrics({"tokens": 1000 * step, **values}, step=step)
    logger.finalize("success")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    start = (0, {"general": 50.0, "medicine": 100.0})
    return [
        made(tmp_path / "none_s1", 1, 0.0, start, (10, {"general": 60.0, "medicine": 40.0})),
        made(tmp_path / "none_s2", 2, 0.0, start, (10, {"general": 64.0, "medicine": 40.0})),
        made(tmp_path / "tenth", 1, 0.1, start, (10, {"general": 51.0, "medicine": 42.0})),
    ]


def test_seeds_are_one_row_and_changes_are_against_the_start(runs: list[Path]) -> None:
    columns, rows = table(compare([*runs, runs[0]]))  # one is given twice, and counts once
    assert columns == ["run", "general", "medicine", "tokens", "time"]
    assert rows == [
        ["before", "50.00", "100.00", "–", "–"],
        ["none (2 seeds)", "62.00 ± 2.83 (+24.0%)", "40.00 ± 0.00 (-60.0%)", "10,000", "1 min 00 s"],
        ["tenth", "51.00 (+2.0%)", "42.00 (-58.0%)", "10,000", "1 min 00 s"],
    ]


def test_stages_that_know_more_and_more_are_against_the_first_that_knew(tmp_path: Path) -> None:
    first = made(tmp_path / "first", 1, 0.0, (5, {"prose": 20.0}))
    second = made(tmp_path / "second", 1, 0.1, (0, {"prose": 21.0, "code": 80.0}), (5, {"prose": 22.0, "code": 8.0}))
    _, rows = table(compare([first, second]))
    assert [row[1:3] for row in rows] == [["20.00", ""], ["22.00 (+10.0%)", "8.00"]]


def test_a_run_that_was_taken_back_counts_as_the_checkpoint_it_ended_with(tmp_path: Path) -> None:
    measured = [(0, {"general": 50.0}), (4, {"general": 52.0}), (8, {"general": 70.0})]
    (row,) = compare([made(tmp_path / "back", 1, 0.0, *measured, restored=5)])[1:]
    assert row.held_out == {"general": [52.0]}


def test_runs_of_different_tokenizers_are_compared_by_bits_per_byte(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / "words", 1, 0.0, (5, {"prose": 300.0}), bits={"prose": 2.8}, tokenizer={"sha256": "a"}),
        made(tmp_path / "bytes", 1, 0.1, (5, {"prose": 200.0}), bits={"prose": 4.2}, tokenizer={"sha256": "b"}),
    ]
    columns, rows = table(compare(runs))
    assert columns[1] == "prose, bits per byte" and [row[1] for row in rows] == ["2.800", "4.200 (+50.0%)"]
    page = write_comparison(runs, tmp_path / "out").read_text()
    assert "Bits per byte of held-out text" in page and "different tokenizers" in page
    assert table(compare(runs[:1]))[1][0][1] == "300.00"


def test_the_page_and_its_picture_are_written(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "together"
    assert main(["--compare", str(out), *map(str, runs)]) == 0
    told = capsys.readouterr().out
    assert "none" in told and "…" not in told  # on 80 columns, too, nothing is cut
    assert "| tenth | 51.00 (+2.0%) |" in (out / "comparison.md").read_text()
    assert (out / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    assert write_comparison(runs[:1], out) == out / "comparison.md"


def test_what_was_not_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["--compare", str(tmp_path / "out"), str(tmp_path / "empty")]) == 2
    assert "holds no measured run" in capsys.readouterr().err
