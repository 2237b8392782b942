"""What becomes of a run whose data comes to an end, by the command line: one pass ends well, and an error leaves only
after everything that was trained is saved.
"""

import json
from pathlib import Path

import pytest
from tests.run.cli import assert_same_weights, cut_back, facts, lifecycle, make_texts, newest, write_rows

ONLY = ["~data.sources.short", "~data.sources.tiny", "data.sources.long.path=own.jsonl", "validation.every_steps=null"]
SHORT = ["stage.global_batch_tokens=512", "checkpoint.every_steps=1000", "data.sources.long.validation=null"]
PASSES = [*ONLY, *SHORT, "stage.max_steps=null", "logging.every_steps=1"]


def of(passes: int) -> list[str]:
    """Of a run of so many passes over a source that may not be read more often."""
    return [*PASSES, f"stage.max_epochs={passes}", f"data.sources.long.max_epochs={passes}"]


@pytest.fixture(autouse=True)
def own_rows(place: Path) -> None:
    write_rows(place / "own.jsonl", make_texts("own", 90, 60))


def test_a_run_of_one_pass_ends_well_and_goes_on_for_another(place: Path) -> None:
    run = place / "outputs/once"
    lifecycle(place, "run=once", *of(1))
    told, source = facts(run), facts(run, "ledger.json")["sources"]["long"]
    assert told["status"] == "finished" and newest(run) == told["steps"] >= told["total_steps"]
    assert source["epochs"] == pytest.approx(1.0) and source["rows"] == 90
    assert "nothing to do" in lifecycle(place, "run=once", *of(1)).out
    lifecycle(place, "run=once", *of(2))
    after = facts(run, "ledger.json")["sources"]["long"]
    assert after["epochs"] == pytest.approx(2.0) and after["seen_tokens"] == 2 * source["seen_tokens"]
    assert facts(run)["status"] == "finished" and newest(run) == facts(run)["steps"] > told["steps"]
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "run.json")}
    done = lifecycle(place, "run=once", *of(1), code=2)
    assert f"stands at step {newest(run)}, beyond the {told['total_steps']} that it is to end with" in done.err
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_source_that_is_used_up_too_early_ends_the_run_with_all_saved(place: Path) -> None:
    run = place / "outputs/early"
    words = ["run=early", *PASSES, "stage.max_steps=30"]
    done = lifecycle(place, *words, "data.sources.long.max_epochs=1", code=2)
    assert "data.sources.long has been read as often as its max_epochs allows" in done.err
    told = facts(run)
    assert told["status"] == "failed" and newest(run) == told["steps"] > 5
    assert facts(run, "ledger.json")["sources"]["long"]["epochs"] == pytest.approx(1.0)
    again = lifecycle(place, *words, "data.sources.long.max_epochs=1", code=2)
    assert "has been read as often" in again.err and newest(run) == told["steps"]
    lifecycle(place, *words, "data.sources.long.max_epochs=9")
    assert facts(run)["status"] == "finished" and facts(run)["steps"] == 30


def test_rows_that_end_a_run_end_it_after_what_was_trained_is_saved(place: Path) -> None:
    write_rows(place / "own.jsonl", make_texts("own", 6000, 30))  # more than a window
    with (place / "own.jsonl").open("a") as file:
        file.write("{broken\n" * 2000)
    words = [
        "run=broken-late",
        *PASSES,
        "stage.max_steps=150",
        "stage.global_batch_tokens=1024",
        "data.bad_rows.min_rows=1",
        "data.streams=1",
    ]
    words.remove("stage.global_batch_tokens=512")
    small = ["data.shuffle_buffer=1", "data.tokenizer.max_bytes=20000", "data.bad_rows.max_share=0.1"]
    done = lifecycle(place, *words, *small, code=2)
    run = place / "outputs/broken-late"
    assert "rows are broken" in done.err and facts(run)["status"] == "failed"
    assert newest(run) == facts(run)["steps"] > 3
    lifecycle(place, *words, *small[:2], "data.bad_rows.max_share=0.9")
    assert facts(run)["steps"] == 150


@pytest.mark.slow
def test_two_ranks_end_one_pass_as_one_does(place: Path) -> None:
    lifecycle(place, "run=alone", *of(1), "hardware.workers=1")
    lifecycle(place, "run=both", *of(1), "hardware.workers=1", "hardware.devices=2", "hardware.strategy=ddp")
    alone, both = (facts(place / "outputs" / name, "ledger.json") for name in ("alone", "both"))
    assert alone == both and facts(place / "outputs/both")["status"] == "finished"
    words = [*PASSES, "stage.max_steps=30", "data.sources.long.max_epochs=1", "hardware.devices=2"]
    done = lifecycle(place, "run=both-early", *words, "hardware.strategy=ddp", code=2)
    assert "has been read as often" in done.err and newest(place / "outputs/both-early") > 5


def test_a_run_of_one_pass_resumes_to_the_same_end(place: Path) -> None:
    lifecycle(place, "run=straight", *of(1), "checkpoint.every_steps=1", "checkpoint.keep_last=99")
    run = place / "outputs/straight"
    for step in (3, newest(run) - 1, newest(run)):
        cut = place / f"outputs/cut-{step}"
        cut_back(run, cut, step)
        lifecycle(place, f"run=cut-{step}", *of(1), "checkpoint.every_steps=1", "checkpoint.keep_last=99")
        assert_same_weights(cut, run)
        assert facts(cut, "ledger.json") == facts(run, "ledger.json")


def test_where_nothing_was_trained_nothing_is_said_to_be_saved(place: Path) -> None:
    done = lifecycle(place, "run=none", "data.sources.tiny.max_epochs=0.01", "data.sources.tiny.weight=50", code=2)
    assert "data.sources.tiny has been read as often" in done.err
    assert "Nothing was trained" in done.err and "saved" not in done.err and newest(place / "outputs/none") == 0


def test_a_finished_run_that_is_given_more_and_gets_no_further_stays_finished(place: Path) -> None:
    run = place / "outputs/more"
    lifecycle(place, "run=more", *of(1))
    before = {name: (run / name).read_bytes() for name in ("run.json", "config.yaml", "metrics.csv")}
    words = ["run=more", *PASSES, "stage.max_steps=99"]
    for fault in (["data.sources.long.max_epochs=1"], ["data.sources.long.max_epochs=1", "data.root=/nowhere"]):
        done = lifecycle(place, *words, *fault, code=2)
        assert "stays finished as it was" in done.err and "Traceback" not in done.err
        assert {name: (run / name).read_bytes() for name in before} == before
    done = lifecycle(place, *words, "data.sources.long.max_epochs=2", code=2)  # after further steps, which are saved
    assert "has been read as often" in done.err and facts(run)["status"] == "failed"
    assert newest(run) == facts(run)["steps"] > json.loads(before["run.json"])["steps"]
