"""The guard in a run: it sees the forgetting, acts, is in every checkpoint, and can end the run with a better one."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.run.cli import (
    assert_same_run,
    assert_same_weights,
    cut_back,
    facts,
    lifecycle,
    metrics,
    newest,
    step_folder,
    write_rows,
)

from lifecycle.lineage.inherit import optimizer_checkpoint
from lifecycle.lineage.parent import find_parent

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


def test_it_goes_back_to_a_checkpoint_that_few_are_kept_of(place: Path, whole: Path) -> None:
    """Steps are saved and measured at other times; from step 9 on the rate is far too high, and another base holds."""
    few = ("stage.peak_ratio=30", "checkpoint.every_steps=3", "checkpoint.keep_last=1", "guard.actions=[restore]")
    jump = "stage.phases=[{at_steps: 0, rate: 0.001}, {at_steps: 9, rope_theta: 2.0}]"
    kept = [word for word in HARSH if not word.startswith(("stage.peak_ratio", "checkpoint."))]
    lifecycle(place, "run=few", *kept, *few, jump)
    run = place / "outputs/few"
    last = facts(run, "forgetting.json")["measurements"][-1]
    assert (last["action"], last["step"], last["to"], facts(run)["restored"]) == ("restore", 12, 8, 8)
    assert newest(run) == 12 and facts(run / "checkpoints", "safe.json")["step"] == 8
    base = facts(whole / "model", "config.json")["rope_parameters"]["rope_theta"]
    assert facts(run / "model", "config.json")["rope_parameters"]["rope_theta"] == base
    assert optimizer_checkpoint(find_parent(str(run))) == step_folder(run, 8)
    assert find_parent(f"{run}@12").model.rope_theta == 2.0
    again = place / "outputs/few-again"
    cut_back(run, again, 12)  # killed while it was finishing
    lifecycle(place, "run=few-again", *kept, *few, jump)
    assert_same_weights(again, run)


def test_a_run_that_is_ended_after_its_last_step_stays_ended(place: Path, whole: Path) -> None:
    kept = [word for word in HARSH if not word.startswith(("stage.max_steps", "stage.peak_ratio"))]
    high = ("stage.max_steps=4", "stage.peak_ratio=100", "guard.actions=[restore]")
    for _ in range(2):  # the second finds all steps taken
        done = lifecycle(place, "run=never", *kept, *high, code=2)
        assert "no checkpoint was below" in " ".join(done.err.split())
    assert facts(place / "outputs/never")["status"] == "failed" and not (place / "outputs/never/model").exists()


def test_a_replay_of_weight_0_is_measured_springs_are_made_of_it_and_the_guard_can_raise_it(
    place: Path, whole: Path
) -> None:
    own = "data.sources.replay={path: long.jsonl, weight: 0, validation: {ratio: 0.1, seed: 1}}"
    lifecycle(place, "run=raised", *HARSH, own, ACTING, "stage.ewc={strength: 1e-6, rows: 4}")
    run = place / "outputs/raised"
    raised = [m for m in facts(run, "forgetting.json")["measurements"] if m["action"] == "replay"]
    assert raised[0]["share"] == 0 and raised[0]["to"] == pytest.approx(0.1)
    assert facts(run, "ledger.json")["sources"]["replay"]["seen_tokens"] > 0


@pytest.mark.slow
def test_two_ranks_see_and_do_the_same_as_one(place: Path, whole: Path) -> None:
    """They decide each for itself, of measurements that all have; only where to go back to is rank 0's to say."""
    actions = "guard.actions=[replay,rate,restore]"
    for number, strategy in ((1, "auto"), (2, "ddp")):
        words = (f"hardware.devices={number}", f"hardware.strategy={strategy}", "hardware.workers=1")
        lifecycle(place, f"run=ranks-{number}", *HARSH, actions, "guard.stop=0.25", *words)
    one, two = (place / f"outputs/ranks-{number}" for number in (1, 2))
    here, there = (facts(run, "forgetting.json")["measurements"] for run in (one, two))
    decided = ("step", "level", "action", "to", "binds", "share", "rate")
    assert [[m[key] for key in decided] for m in here] == [[m[key] for key in decided] for m in there]
    assert {"replay", "restore"} <= {m["action"] for m in here}
    for mine, theirs in zip(here, there, strict=True):
        assert mine["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-4)
    assert facts(one, "ledger.json") == facts(two, "ledger.json")
    assert facts(one)["restored"] == facts(two)["restored"] > 0


def test_any_stage_that_begins_with_a_parent_watches_what_both_measure(place: Path, whole: Path) -> None:
    short = ("stage.max_steps=8", "validation.every_steps=4", "validation.tokens=2000", "stage.optimizer.lr=1e-4")
    lifecycle(place, "run=longer", "init_from=whole", *short, "guard.actions=[rate,restore]")
    history = facts(place / "outputs/longer", "forgetting.json")
    assert history["retained"] == ["long", "short", "tiny"]
    assert [m["step"] for m in history["measurements"]] == [0, 4, 8]


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


MODEL = ("init_from=outputs/whole/model", "stage.optimizer.lr=1e-4")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("guard.actions=[replay]",), "has replay, which this stage cannot take (it takes rate, restore)"),
        (("guard.actions=[rate]",), "the run starts from fresh weights, which forget nothing"),
        ((*HARSH, "validation.every_steps=null", "guard.actions=[rate]"), "validation.every_steps is null"),
        (
            (*HARSH, "validation.every_steps=0"),
            "validation.every_steps is 0: type validation.every_steps=N, or guard=null",
        ),
        ((*HARSH, "validation.every_steps=40", "guard.actions=[rate]"), "first when its 40 steps are over"),
        ((*HARSH, "validation.every_steps=99", "guard.actions=[replay]", "dry_run=true"), "its 40 steps are over"),
        ((*HARSH, *MODEL, "guard.actions=[rate]"), "the run has no held-out text of what"),
        ((*HARSH, *MODEL, "guard.actions=[rate]", "dry_run=true"), "the run has no held-out text of what"),
        (
            (*HARSH, *MODEL, "guard.actions=[replay]")
            + ("data.sources.replay={path: long.jsonl, weight: 1, validation: null}",),
            "the run has no held-out text of what",
        ),
    ],
)
def test_a_guard_that_could_not_act_is_refused(place: Path, whole: Path, overrides: tuple[str, ...], said: str) -> None:
    typed = {word.partition("=")[0]: word for word in overrides}  # the last of a key counts
    done = lifecycle(place, "run=refused", *typed.values(), code=2)
    assert said in " ".join(done.err.split())


def test_new_text_of_the_parents_name_is_not_taken_for_what_it_knew(place: Path, whole: Path) -> None:
    """Learning the new text would hide the forgetting of the old: each is measured by itself."""
    named = "data.sources.long={path: other.jsonl, validation: {ratio: 0.1, seed: 1}}"
    kept = [word for word in HARSH if not word.startswith(("data=", "stage.max_steps"))]
    lifecycle(place, "run=named", *kept, "data=other", "~data.sources.other", named, "stage.max_steps=12")
    history = facts(place / "outputs/named", "forgetting.json")
    assert history["retained"] == ["replay.long", "short", "tiny"]
    first, last = history["measurements"][0], history["measurements"][-1]
    learned = last["perplexity"]["long"] / first["perplexity"]["long"] - 1
    assert learned < -0.3 and last["forgetting"]["replay.long"] > learned + 0.2


def test_what_has_weight_0_is_measured_though_nothing_else_is(place: Path, whole: Path) -> None:
    kept = [word for word in HARSH if not word.startswith("stage.max_steps")]
    blind = "data.sources.other.validation=null"
    lifecycle(place, "run=only-old", *kept, blind, "stage.max_steps=8", "guard.actions=[rate]")
    run = place / "outputs/only-old"
    measured = facts(run, "forgetting.json")["measurements"]
    assert [m["step"] for m in measured] == [0, 4, 8] and set(measured[-1]["forgetting"]) == {"long", "short", "tiny"}
    assert {"valid/long/perplexity", "guard/long/forgetting"} <= set(metrics(run)) and "valid/loss" not in metrics(run)
    assert not (run / "checkpoints/best.json").exists()


def test_it_watches_a_student_that_leaves_what_it_knew(place: Path, whole: Path) -> None:
    words = [word for word in HARSH if not word.startswith(("stage=", "stage.replay", "stage.peak_ratio"))]
    student = ("stage=distill", "stage.view=text", "stage.teacher=whole", "stage.cross_entropy=1.0")
    own = "data.sources.replay={path: long.jsonl, weight: 0, validation: {ratio: 0.1, seed: 1}}"
    high = ("stage.optimizer.lr=0.01", "stage.max_steps=16", "guard.actions=[rate]")
    done = lifecycle(place, "run=student", *words, *student, own, *high)
    measured = facts(place / "outputs/student", "forgetting.json")["measurements"]
    assert [m["step"] for m in measured] == list(range(0, 17, 4))
    assert any(m["action"] == "rate" for m in measured) and "rate" in done.err
