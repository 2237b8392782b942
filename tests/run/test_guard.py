"""The guard in a run: it sees the forgetting, acts, is in every checkpoint, and can end the run with a better one."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.run.cli import assert_same_run, cut_back, facts, lifecycle, metrics, newest, step_folder, write_rows

HARSH = (
    "stage=midtrain",
    "data=other",
    "init_from=whole",
    "stage.max_steps=40",
    "stage.replay.share=0",
    "stage.peak_ratio=1.0",
    "checkpoint.every_steps=4",
    "checkpoint.keep_last=99",
    "validation.every_steps=4",
    "validation.tokens=2000",
)
ACTING = "guard.actions=[replay,rate]"


@pytest.fixture(scope="module", autouse=True)
def other(place: Path, whole: Path) -> None:
    """Text with the same words in another order: learning it is forgetting."""
    write_rows(place / "other.jsonl", [f"{n} " + "bank river some near house grey old that " * 8 for n in range(300)])
    source = {"path": "other.jsonl", "validation": {"ratio": 0.1, "seed": 1}}
    node = {
        "defaults": ["_engine", "_self_"],
        "tokenizer": "unused",
        "shuffle_buffer": 64,
        "sources": {"other": source},
    }
    (place / "conf/data/other.yaml").write_text(yaml.safe_dump(node, sort_keys=False))


def test_it_raises_the_replay_and_a_run_resumed_across_an_action_is_the_same(place: Path, whole: Path) -> None:
    done = lifecycle(place, "run=acting", *HARSH, ACTING, "hardware.workers=1")
    run = place / "outputs/acting"
    measured = facts(run, "forgetting.json")["measurements"]
    assert [m["step"] for m in measured] == list(range(0, 41, 4))
    acted = [m for m in measured if m["action"]]
    assert acted[0]["action"] == "replay" and acted[0]["share"] == 0 and acted[0]["to"] == pytest.approx(0.1)
    assert acted[0]["binds"] == acted[0]["step"] + 1
    assert "replay goes from 0% to 10%" in done.err
    replayed = {n: row["seen_tokens"] for n, row in facts(run, "ledger.json")["sources"].items() if n != "other"}
    assert sum(replayed.values()) > 0
    columns = metrics(run)
    assert columns["guard/long/forgetting"][columns["step"].index(4)] is not None
    for step in (acted[0]["step"] - 4, acted[0]["step"], acted[0]["step"] + 4):
        again = place / f"outputs/acting-{step}"
        cut_back(run, again, step)
        lifecycle(place, f"run=acting-{step}", *HARSH, ACTING, "hardware.workers=1")
        assert_same_run(again, run)
        assert facts(again, "forgetting.json") == facts(run, "forgetting.json")


def test_it_measures_without_acting_where_no_action_is_allowed(place: Path, whole: Path) -> None:
    done = lifecycle(place, "run=watched", *HARSH)
    measured = facts(place / "outputs/watched", "forgetting.json")["measurements"]
    assert all(m["action"] is None for m in measured) and measured[-1]["level"] in ("act", "stop")
    assert "guard.actions=[replay]" in done.err


def test_it_ends_a_run_with_the_last_checkpoint_that_was_good(place: Path, whole: Path) -> None:
    lifecycle(place, "run=ended", *HARSH, "guard.actions=[restore]")
    run = place / "outputs/ended"
    last = facts(run, "forgetting.json")["measurements"][-1]
    assert last["action"] == "restore" and 0 < last["to"] < last["step"] == newest(run)
    assert (facts(run)["status"], facts(run)["restored"]) == ("finished", last["to"])
    kept = load_file(step_folder(run, last["to"]) / "weights.safetensors")["model.embedding.weight"]
    assert torch.equal(load_file(run / "model/model.safetensors")["model.embed_tokens.weight"], kept)


def test_springs_hold_what_replay_would_and_are_in_the_checkpoint(place: Path, whole: Path) -> None:
    springs = "stage.ewc={strength: 1000.0, rows: 16}"
    for name, more in (("free", ()), ("held", (springs,))):
        lifecycle(place, f"run={name}", *HARSH, *more)
    lost = {
        n: facts(place / f"outputs/{n}", "forgetting.json")["measurements"][-1]["forgetting"] for n in ("free", "held")
    }
    assert max(lost["held"].values()) < 0.5 * max(lost["free"].values())
    run, again = place / "outputs/held", place / "outputs/held-again"
    penalties = metrics(run)["train/ewc"]
    assert penalties[1] == 0.0 and penalties[-1] is not None and penalties[-1] > 0  # the first is the row of the start
    cut_back(run, again, 20)
    lifecycle(place, "run=held-again", *HARSH, springs)
    assert_same_run(again, run)


def test_an_action_that_the_stage_cannot_take_is_refused(place: Path) -> None:
    done = lifecycle(place, "run=refused", "guard.actions=[rate]", code=2)
    assert "guard.actions has rate, which this stage cannot take (it takes none)" in done.err.replace("\n", " ")
