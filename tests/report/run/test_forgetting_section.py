"""The section on what was kept of the parent."""

from dataclasses import replace
from pathlib import Path

from lifecycle.report.page.canvas import LIGHT
from lifecycle.report.run.forgetting_section import action_words, forgetting, table, verdict
from lifecycle.report.run.run_data import read_run
from lifecycle.report.run.sections import sections


def test_the_table_names_losses_levels_and_actions(finished: Path) -> None:
    columns, rows = table(read_run(finished))
    assert columns == ["step", "old", "level", "action"]
    assert rows[1] == ["50", "+12.0%", "act", "replay 0% to 10%"]
    assert [row[-1] for row in rows] == ["", "replay 0% to 10%", "rate x 0.5", ""]


def test_a_long_run_shows_its_actions_and_its_end(finished: Path) -> None:
    run = read_run(finished)
    looks = [{**run.forgetting["measurements"][0], "step": step} for step in range(0, 1000, 10)]
    looks[37]["action"], looks[37]["to"], looks[37]["share"] = "replay", 0.2, 0.1
    _, rows = table(replace(run, forgetting={"measurements": looks}))
    assert len(rows) < 20 and rows[-1][0] == "990"
    assert ["370", "+0.0%", "fine", "replay 10% to 20%"] in rows


def test_no_loss_is_minus_zero(finished: Path) -> None:
    run = read_run(finished)
    for measured in run.forgetting["measurements"]:
        measured["forgetting"] = dict.fromkeys(measured["forgetting"], -1e-5)
    assert {row[1] for row in table(run)[1]} == {"+0.0%"}
    assert "the perplexity of old is +0.0% against" in verdict(run)


def test_the_verdict_is_about_the_domain_that_lost_most(finished: Path) -> None:
    said = verdict(read_run(finished))
    assert said.startswith("At the end the perplexity of old is +8.0% against the parent's")
    assert "acted 2 times" in said


def test_a_run_without_a_parent_has_no_such_section(finished: Path) -> None:
    run = replace(read_run(finished), forgetting={})
    assert forgetting(run, LIGHT) is None and verdict(run) == ""
    assert not any("kept of the parent" in str(block) for block in sections(run, []))
    assert any("kept of the parent" in str(block) for block in sections(read_run(finished), ["forgetting"]))


def test_going_back_is_said_with_its_step() -> None:
    assert action_words({"action": "restore", "to": 40}) == "back to step 40"
