"""Mid-training from a finished run, end to end: what it inherits, what it replays, and rows that grow on the way."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.run.cli import assert_same_run, cut_back, facts, lifecycle, make_texts, metrics, step_folder, write_rows

MID = (
    "stage=midtrain",
    "data=new",
    "init_from=whole",
    "stage.max_steps=24",
    "checkpoint.every_steps=4",
    "checkpoint.keep_last=99",
    "validation.every_steps=12",
)
RATE = ("stage.optimizer.lr=1e-3", "stage.max_steps=4")
GROWING = (
    "stage.phases=[{at_steps: 0, sequence_length: 32, rate: 0.5}, {at_steps: 9, sequence_length: 64, rows: 8},"
    " {at_steps: 15, rope_theta: 50000}]"
)


@pytest.fixture(scope="module", autouse=True)
def new_data(place: Path, whole: Path) -> None:
    """A data config of one source that the parent has never seen."""
    write_rows(place / "new.jsonl", [text.replace("cat", "dog") for text in make_texts("new", 300, 80)])
    source = {"path": "new.jsonl", "validation": {"ratio": 0.1, "seed": 1}}
    node = {"defaults": ["_engine", "_self_"], "tokenizer": "unused", "shuffle_buffer": 64, "sources": {"new": source}}
    (place / "conf/data/new.yaml").write_text(yaml.safe_dump(node, sort_keys=False))


def test_it_inherits_the_rate_and_replays_the_parents_own_mixture(place: Path, whole: Path) -> None:
    lifecycle(place, "run=mid", *MID, "stage.replay.share=0.25")
    run = place / "outputs/mid"
    told = facts(run)
    assert told["peak_lr"] == pytest.approx(facts(whole)["peak_lr"] * 0.0333)
    assert told["parent"]["path"] == str(whole) and told["ancestors"] == []
    assert set(told["data"]["config"]["sources"]) == {"new", "replay.long", "replay.short", "replay.tiny"}
    ledger = facts(run, "ledger.json")
    seen = {name: row["seen_tokens"] for name, row in ledger["sources"].items()}
    # 24 rows of the 64 that each stream packs at once are seen: their share is that of the whole but for the shuffle
    assert sum(seen[n] for n in seen if n != "new") / ledger["tokens"] == pytest.approx(0.25, abs=0.06)
    theirs = {n: row["seen_tokens"] for n, row in facts(whole, "ledger.json")["sources"].items()}
    assert ledger["sources"]["replay.long"]["weight"] == pytest.approx(0.25 * theirs["long"] / sum(theirs.values()))
    rows = metrics(run)
    assert {f"valid/{domain}/perplexity" for domain in ("new", "long", "short", "tiny")} <= set(rows)
    assert rows["step"][0] == 0  # what the parent knew was measured before the first step
    rates = [rate for rate in rows["train/lr"] if rate is not None]
    assert max(rates) == rates[0] == pytest.approx(told["peak_lr"])  # 5 % of 24 steps is one step of warm-up
    losses = [loss for loss in rows["valid/loss"] if loss is not None]
    assert losses[-1] < losses[0]


def test_several_in_a_row_replay_the_generations_that_are_asked_for(place: Path, whole: Path) -> None:
    lifecycle(place, "run=one", *MID, "stage.max_steps=4", "validation.tokens=900", "seed=7")
    before, after = metrics(whole), metrics(place / "outputs/one")
    for domain in ("long", "short", "tiny"):  # what the parent reports is what the child begins with, on the same text
        ended, begun = before[f"valid/{domain}/perplexity"][-1], after[f"valid/{domain}/perplexity"][0]
        assert ended is not None and begun == pytest.approx(ended, rel=1e-5), domain
    lifecycle(place, "run=two", *MID, "init_from=one", "stage.max_steps=4", "stage.replay.ancestors=[0.75,0.25]")
    sources = facts(place / "outputs/two")["data"]["config"]["sources"]
    assert sources["replay.new"]["weight"] == pytest.approx(0.75)
    assert sum(s["weight"] for n, s in sources.items() if n.startswith("replay.1.")) == pytest.approx(0.25)
    assert [entry["path"] for entry in facts(place / "outputs/two")["ancestors"]] == [str(whole)]


def test_domains_of_every_generation_are_measured_whichever_are_replayed(place: Path, whole: Path) -> None:
    lifecycle(place, "run=first", *MID, "stage.max_steps=4")
    lifecycle(place, "run=second", *MID, "init_from=first", "stage.max_steps=4", "data.sources.new.domain=newer")
    run = place / "outputs/second"
    sources = facts(run)["data"]["config"]["sources"]
    assert {name: s["weight"] for name, s in sources.items() if name != "new"} == {
        "replay.new": 1.0,
        **{f"replay.1.{name}": 0.0 for name in ("long", "short", "tiny")},
    }
    ledger = facts(run, "ledger.json")["sources"]
    assert ledger["replay.new"]["seen_tokens"] > 0 == ledger["replay.1.long"]["seen_tokens"]
    measured = facts(run, "forgetting.json")["measurements"][-1]
    assert set(measured["forgetting"]) == {"new", "newer", "long", "short", "tiny"}  # newer: the same text again


def test_what_the_parent_kept_out_of_its_text_does_not_come_back(place: Path, whole: Path) -> None:
    rows = [json.loads(line) for line in (place / "short.jsonl").read_text().splitlines()]
    salt = [row["text"] for row in rows if len(row["text"].split()) > 14][:20]
    write_rows(place / "exam.jsonl", salt)
    look = "data.decontaminate={sets: {exam: {path: exam.jsonl}}}"
    lifecycle(place, "run=clean", look, "init_from=whole", "stage.max_steps=4", "stage.optimizer.lr=1e-3")
    lifecycle(place, "run=cleaner", *MID, "init_from=clean", "stage.max_steps=12", "stage.replay.share=0.9")
    run = place / "outputs/cleaner"
    assert facts(run)["data"]["config"]["decontaminate"]["sets"]["exam"]["path"] == str(place / "exam.jsonl")
    found = facts(run, "decontamination.json")["sources"]
    assert found["replay.short"]["exam"] > 0


def test_prepared_data_is_read_and_what_is_replayed_comes_from_its_files(place: Path, whole: Path) -> None:
    lifecycle(place, "run=shards", "stage=prepare", "data=new", "init_from=whole")
    short = ("stage.max_steps=8", "stage.replay.share=0.25")
    lifecycle(place, "run=of-shards", *MID, *short, "data.prepared=shards")
    run = place / "outputs/of-shards"
    seen = {name: row["seen_tokens"] for name, row in facts(run, "ledger.json")["sources"].items()}
    assert all(seen[name] > 0 for name in ("new", "replay.long", "replay.short"))
    lifecycle(place, "run=of-files", *MID, *short)
    first = [metrics(place / f"outputs/{name}")["valid/new/perplexity"][0] for name in ("of-shards", "of-files")]
    assert first[0] == first[1]  # of the same held-out texts
    cut_back(run, place / "outputs/again", 4)
    lifecycle(place, "run=again", *MID, *short, "data.prepared=shards")
    assert_same_run(place / "outputs/again", run)


def test_shards_of_another_tokenizer_than_the_parents_are_refused(place: Path, whole: Path) -> None:
    recipe = "data.tokenizer={vocab_size: 300, digits: 1, max_bytes: 20000}"
    lifecycle(place, "run=foreign", "stage=prepare", "data=new", recipe)
    done = lifecycle(place, "run=refused", *MID, "data.prepared=foreign", code=2)
    said = done.err.replace("\n", " ")
    assert "ids of another tokenizer" in said and "stage=prepare init_from=PARENT" in said


def test_rows_rates_and_rope_change_on_the_way_and_a_resumed_run_is_the_same(place: Path, whole: Path) -> None:
    lifecycle(place, "run=growing", *MID, GROWING)
    run = place / "outputs/growing"
    for step in (4, 8, 12, 16, 24):  # after 24 no step is left, only the export
        again = place / f"outputs/again-{step}"
        cut_back(run, again, step)
        lifecycle(place, f"run=again-{step}", *MID, GROWING)
        assert facts(again)["resumed"] == 1
        assert_same_run(again, run)
    for folder in (run, place / "outputs/again-24"):
        config = json.loads((folder / "model/config.json").read_text())
        assert config["rope_parameters"]["rope_theta"] == 50000
    tokens = metrics(run)["tokens"]
    assert tokens[-1] is not None and 19_000 < tokens[-1] < 18 * 1024 + 6 * 512


def test_workers_read_ahead_across_a_change_of_rows(place: Path, whole: Path) -> None:
    lifecycle(place, "run=alone", *MID, GROWING, "checkpoint.every_steps=24")
    lifecycle(place, "run=helped", *MID, GROWING, "checkpoint.every_steps=24", "hardware.workers=2")
    assert_same_run(place / "outputs/alone", place / "outputs/helped")


def test_the_optimizer_goes_on_with_the_parents_moments(place: Path, whole: Path) -> None:
    short = ("stage.max_steps=1", "checkpoint.every_steps=1", "stage.replay.share=0")
    for state in ("fresh", "parent"):
        lifecycle(place, f"run={state}", *MID, *short, f"stage.optimizer_state={state}")
    moments = {
        state: load_file(step_folder(place / f"outputs/{state}", 1) / "state.safetensors")
        for state in ("fresh", "parent")
    }
    before = load_file(step_folder(whole, 40) / "state.safetensors")
    name = next(n for n in before if n.endswith("0.exp_avg_sq"))
    change = (moments["parent"][name] - 0.95 * before[name]) / moments["fresh"][name]
    torch.testing.assert_close(change, torch.ones_like(change), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("init_from=null",), "init_from is null: type init_from=RUN"),
        (
            ("init_from=outputs/whole/model", "stage.optimizer.lr=1e-4"),
            "is no run, and what it was trained on is not known",
        ),
        (("init_from=outputs/whole/model", "stage.replay.share=0"), "stage.optimizer.lr is null"),
        (
            ("init_from=outputs/whole/model", "stage.replay.share=0", "stage.optimizer.lr=1e-4")
            + ("stage.optimizer_state=parent",),
            "has no checkpoint",
        ),
        (
            ("init_from=outputs/whole/model", "stage.replay.share=0", "stage.optimizer.lr=1e-4")
            + ("stage.optimizer_state=parent", "dry_run=true"),
            "has no checkpoint",
        ),
        (("stage.optimizer.lr=null", "optimizer=muon"), "was trained with AdamW, whose rates mean nothing to Muon"),
        (("stage.phases=[{at_steps: 0, weights: {nwe: 1.0}}]",), "has a weight for nwe, and there is no such source"),
        (("stage.phases=[{at_steps: 0, weights: {nwe: 1.0}}]", "dry_run=true"), "did you mean new?"),
        (("stage.phases=[{at_steps: 0, weights: {nwe: 1.0}}]", "stage.max_epochs=1"), "did you mean new?"),
        (("stage.replay.share=1.5",), "stage.replay.share is 1.5"),
        (("stage.phases=[{at_steps: 0, sequence_lenght: 64}]",), "did you mean"),
    ],
)
def test_what_the_parent_cannot_give_is_said(place: Path, overrides: tuple[str, ...], said: str) -> None:
    typed = {word.partition("=")[0] for word in overrides}
    kept = [word for word in MID if word.partition("=")[0] not in typed]
    shutil.rmtree(place / "outputs/refused", ignore_errors=True)  # some are refused only when their folder is there
    done = lifecycle(place, "run=refused", *kept, *overrides, code=2)
    assert said in done.err.replace("\n", " ")


def test_a_source_named_replay_stands_in_the_parents_place(place: Path) -> None:
    own = "data.sources.replay={path: long.jsonl, weight: 3}"
    lifecycle(
        place, "run=own", *MID, "init_from=outputs/whole/model", own, "stage.optimizer.lr=1e-3", "stage.max_steps=4"
    )
    assert facts(place / "outputs/own", "ledger.json")["sources"]["replay"]["weight"] == pytest.approx(0.75)
