"""The page over stages: the same questions in every row, intervals, and what each stage bought."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lifecycle.errors import UserError
from lifecycle.loggers.csv_logger import CsvLogger
from lifecycle.report.__main__ import main
from lifecycle.report.stages import read_stages, table, write_stages
from lifecycle.report.stages.page import most_frequent
from lifecycle.report.stages.results import Counted


def answer(step: int, number: int, *, right: bool, domain: str = "questions") -> dict[str, Any]:
    said = {"prompt": f"<|user|>\nWhat is {number}?<|end|>\n", "reference": f"{number % 2}<|end|>"}
    marks = {"stopped": True, "well_formed": True, "right": right}
    return {"step": step, "domain": domain, "completion": f"{number}<|end|>", "tokens": 2, **said, **marks}


def made(folder: Path, stage: str, answers: Sequence[dict[str, Any]], **measured: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": folder.name}))
    validation = {"validation": {"questions": {"documents": 100}}}
    facts = {"status": "finished", "stage": stage, "seconds": 60.0, "data": validation}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
    logger = CsvLogger(folder=folder)
    for step in (0, 10):
        logger.log_metrics({"tokens": 1000 * step, **{key.replace("__", "/"): v for key, v in measured.items()}}, step)
    logger.finalize("success")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    def asked(right: int, count: int) -> list[dict[str, Any]]:
        return [answer(step, n, right=step == 10 and n < right) for step in (0, 10) for n in range(count)]

    text = {"valid__prose__loss": 4.0, "valid__prose__perplexity": 54.6, "valid__questions__loss": 6.0}
    return [
        made(tmp_path / "a", "pretrain", asked(0, 10), **text),
        made(tmp_path / "b", "sft", [*asked(5, 8), answer(10, 0, right=True, domain="trained")], **text),
        made(tmp_path / "c", "dpo", asked(6, 8), valid__questions__loss=0.6, valid__questions__accuracy=0.8),
    ]


def test_each_row_is_of_the_questions_that_all_were_asked(runs: list[Path]) -> None:
    columns, rows = table(read_stages(runs))
    assert columns[3:] == ["loss on prose", "well-formed", "right answers", "pairs told apart"]
    assert rows == [
        ["pretrain", "10,000", "1 min 00 s", "4.000", "100.0 %", "0.0 % (0 to 32)", "–"],
        ["sft", "10,000", "1 min 00 s", "4.000", "100.0 %", "62.5 % (31 to 86)", "–"],
        ["dpo", "10,000", "1 min 00 s", "–", "100.0 %", "75.0 % (41 to 93)", "80.0 % (71 to 87)"],
    ]


def test_the_page_says_what_knowing_nothing_would_reach_and_what_was_trained(runs: list[Path], tmp_path: Path) -> None:
    page = write_stages(runs, tmp_path / "out").read_text()
    assert "Right answers to 8 held-out questions: 0.0 % after pretrain, 62.5 % after sft, 75.0 % after dpo" in page
    assert "Always saying 0, the most frequent of their answers, would reach 50.0 %" in page
    assert "After sft, 100.0 % (21 to 100) of 1 answers to `trained` are right." in page
    assert "![" in page and (tmp_path / "out/stages.png").is_file()
    assert "What is 7?" in (tmp_path / "out/stages.html").read_text() or "What is 5?" in page


def test_intervals_are_wilsons() -> None:
    assert Counted(those=50, of=100).interval == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert Counted(those=0, of=10).interval == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert most_frequent([answer(0, n, right=False) for n in range(3)]) == ("0", 2 / 3)


def test_runs_without_a_common_question_are_shown_by_their_losses(tmp_path: Path) -> None:
    alone = made(tmp_path / "a", "pretrain", [], valid__prose__loss=4.0, valid__prose__perplexity=54.6)
    page = write_stages([alone], tmp_path / "out").read_text()
    assert "No question was asked in all of these runs." in page and "| pretrain |" in page


def test_the_command_shows_the_table_and_where_the_page_is(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["--stages", str(out), *map(str, runs)]) == 0
    shown = capsys.readouterr().out
    assert "75.0 %" in shown and "stages.md" in shown
    assert main(["--stages", str(out), str(tmp_path / "none")]) == 2


def test_on_a_narrow_terminal_the_table_breaks_no_number(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a column is a stage, and a row what was measured."""
    for columns, found in (
        ("80", ["time", "1 min 00 s"]),
        ("60", ["right answers", "75.0 %"]),
        ("160", ["dpo", "75.0 %"]),
    ):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["--stages", str(tmp_path / "out"), *map(str, runs)]) == 0
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        name, value = found
        assert any(line.startswith(name) and value in line and len(line) <= int(columns) for line in lines), lines
        assert any("(41 to 93)" in line for line in lines)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run that took a step"):
        read_stages([tmp_path / "none"])


def test_what_a_stage_gained_on_its_own_questions_is_told_with_its_interval(tmp_path: Path) -> None:
    own = [answer(step, n, right=n < 20 + 3 * step, domain="own") for step in (0, 5, 10) for n in range(100)]
    page = write_stages([made(tmp_path / "g", "grpo", [answer(0, 0, right=True)])], tmp_path / "one").read_text()
    assert "paired bootstrap" not in page
    runs = [
        made(tmp_path / "s", "sft", [answer(step, 0, right=True) for step in (0, 10)]),
        made(tmp_path / "r", "grpo", [*(answer(step, 0, right=True) for step in (0, 10)), *own]),
    ]
    page = write_stages(runs, tmp_path / "two").read_text()
    assert "After grpo, 50.0 % (40 to 60) of 100 answers to `own` are right; before it, 20.0 % (13 to 29) were" in page
    assert "+30.0 points (+21.0 to +39.0, by a paired bootstrap)" in page
