"""The section on the answers to held-out prompts."""

import json
import shutil
from pathlib import Path

import pytest

from lifecycle.report.page.render import Heading, Sheet, to_html, to_markdown
from lifecycle.report.run.answers_section import answers
from lifecycle.report.run.run_data import read_run
from lifecycle.report.run.sections import sections


def line(step: int, number: int, *, stopped: bool, said: str) -> str:
    known = {"step": step, "domain": "talk", "prompt": f"<|user|>ask {number}", "reference": "right", "tokens": 3}
    return json.dumps({**known, "completion": said, "stopped": stopped, "well_formed": stopped}) + "\n"


@pytest.fixture
def answered(finished: Path, tmp_path: Path) -> Path:
    """A run of 30 measurements, the last of which is the first whose answers stop, but for one."""
    shutil.copytree(finished, tmp_path / "run")
    early = [line(step, n, stopped=False, said="well | well") for step in range(0, 290, 10) for n in range(8)]
    late = [line(290, n, stopped=n > 0, said="right") for n in range(8)]
    (tmp_path / "run/answers.jsonl").write_text("".join(early + late))
    return tmp_path / "run"


def test_the_first_and_the_last_answers_stand_side_by_side(answered: Path) -> None:
    heading, shares, texts, _ = answers(read_run(answered))
    assert isinstance(heading, Heading) and isinstance(shares, Sheet) and isinstance(texts, Sheet)
    assert list(shares.rows[0]) == ["0", "8", "0.0 %", "0.0 %"] and list(shares.rows[-1]) == [
        "290",
        "8",
        "87.5 %",
        "87.5 %",
    ]
    assert len(shares.rows) <= 12
    assert list(texts.columns) == ["prompt", "after 0 steps", "after 290 steps", "in the data"]
    assert list(texts.rows[0]) == ["<|user|>ask 0", "well | well", "right", "right"]


def test_what_a_model_writes_breaks_no_table(answered: Path) -> None:
    blocks = answers(read_run(answered))
    assert "well \\| well" in to_markdown("it", blocks, "report")
    assert "&lt;|user|&gt;ask 0" in to_html("it", blocks, {}, {})


def test_a_run_that_was_asked_nothing_has_no_such_section(finished: Path) -> None:
    run = read_run(finished)
    assert answers(run) == [] and "answers.jsonl" not in " ".join(run.missing)
    assert not any(isinstance(b, Heading) and b.text.startswith("Answers") for b in sections(run, []))


def test_answers_that_were_cut_short_are_named_and_no_more(answered: Path) -> None:
    whole = (answered / "answers.jsonl").read_text()
    (answered / "answers.jsonl").write_text(whole[:-20])
    run = read_run(answered)
    assert run.answers == [] and "answers.jsonl (damaged)" in run.missing
