"""The section on what the samples looked like before the first update."""

import json
import shutil
from pathlib import Path
from typing import Any

from lifecycle.report.page.render import Paragraph, Sample, Sheet
from lifecycle.report.run.reinforcement.watched_section import before_the_first_update, noticed
from lifecycle.report.run.run_data import read_run
from lifecycle.report.write import write_report

SHOWN = {"why": "best", "prompt": "1 + 1?\n", "completion": "2", "reward": 1.0, "answer": "2", "ending": "cut off"}
FOUND: dict[str, Any] = {
    "prompts": 32,
    "samples": 8,
    "seconds": 4.25,
    "table": [["came to their own end", "12.5%"]],
    "refused": [],
    "warned": ["few stop"],
    "shown": [SHOWN, {**SHOWN, "why": "worst", "reward": None, "answer": None}],
}


def looked_at(finished: Path, place: Path, **changed: Any) -> Path:
    shutil.copytree(finished, place)
    (place / "preflight.json").write_text(json.dumps({**FOUND, **changed}))
    return place


def test_a_run_that_was_looked_at_says_what_was_found(finished: Path, tmp_path: Path) -> None:
    blocks = before_the_first_update(read_run(looked_at(finished, tmp_path / "run")))
    (table,), samples = [b for b in blocks if isinstance(b, Sheet)], [b for b in blocks if isinstance(b, Sample)]
    assert list(table.rows[0]) == ["came to their own end", "12.5%"]
    assert [one.caption for one in samples] == [
        "best: reward 1, cut off, answer in the data: 2",
        "worst: no reward, cut off",
    ]
    page = write_report(tmp_path / "run").read_text()
    assert "Before the first update" in page and "few stop" in page and "4.2 seconds" in page


def test_a_run_that_was_refused_says_why(finished: Path, tmp_path: Path) -> None:
    blocks = before_the_first_update(read_run(looked_at(finished, tmp_path / "run", refused=["nothing stops"])))
    assert Paragraph("Refused: nothing stops", "warning") in blocks


def test_any_other_run_has_no_such_section(finished: Path) -> None:
    assert before_the_first_update(read_run(finished)) == []


def test_what_was_noticed_stands_in_the_page_with_its_step(finished: Path, tmp_path: Path) -> None:
    place = looked_at(finished, tmp_path / "run")
    assert noticed(read_run(place)) == []
    said = [{"step": 1200, "cause": "entropy", "words": "the entropy has gone"}]
    (place / "noticed.json").write_text(json.dumps(said))
    (table,) = [block for block in noticed(read_run(place)) if isinstance(block, Sheet)]
    assert [list(row) for row in table.rows] == [["1,200", "the entropy has gone"]]
    assert "What was noticed" in write_report(place).read_text()
