"""A run that goes on is the run that began, end to end: the same tokenizer, and data of the same content."""

import json
import shutil
from pathlib import Path

import pytest
from tests.run.cli import cut_back, facts, lifecycle, metrics, write_rows

from lifecycle.tokenizer.tokenizer import train_bpe

SHORT = ("stage.max_steps=4", "checkpoint.every_steps=2", "checkpoint.keep_last=9", "validation.every_steps=4")
SMALL = "data.tokenizer={vocab_size: 300, digits: 1, max_bytes: 20000}"


def another_tokenizer(folder: Path) -> None:
    """Put one over that which is there."""
    train_bpe(["a cat and a hat"] * 9, vocab_size=290, digits=1).save(folder)


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    lifecycle(place, "run=whole", *SHORT)
    return place / "outputs/whole"


def test_a_source_that_grew_is_named_and_the_run_goes_on_with_the_old_one(place: Path, whole: Path) -> None:
    cut_back(whole, place / "outputs/grown", 2)
    before = (whole / "tokenizer/tokenizer.json").read_bytes()
    then = (place / "short.jsonl").read_bytes()
    with (place / "short.jsonl").open("a") as file:
        file.write(json.dumps({"text": "zebra quagga " * 50}) + "\n")
    told = facts(place / "outputs/grown")
    done = lifecycle(place, "run=grown", *SHORT, code=2)
    assert facts(place / "outputs/grown") == told
    assert "short (changed: short.jsonl)" in done.err and "Traceback" not in done.err
    assert (place / "outputs/grown/tokenizer/tokenizer.json").read_bytes() == before
    (place / "short.jsonl").write_bytes(then)
    lifecycle(place, "run=grown", *SHORT)
    assert repr(metrics(place / "outputs/grown")["train/loss"]) == repr(metrics(whole)["train/loss"])


def test_a_run_that_is_beyond_its_new_end_is_refused_and_stays_as_it_is(place: Path, whole: Path) -> None:
    before = {name: (whole / name).read_bytes() for name in ("run.json", "config.yaml", "metrics.csv")}
    done = lifecycle(place, "run=whole", *SHORT[1:], "stage.max_steps=3", code=2)
    assert "stands at step 4, beyond the 3 that it is to end with" in done.err and "Traceback" not in done.err
    assert {name: (whole / name).read_bytes() for name in before} == before


def test_a_start_that_saved_nothing_binds_nobody_to_its_values(place: Path, whole: Path) -> None:
    """What its error advises to change may be changed under the same name."""
    for stage in ("prepare", "pretrain"):
        job = (f"stage={stage}", *(SHORT if stage == "pretrain" else ()))
        bound = (*job, "data.sources.short.filters.min_chars=1000000")
        refused = lifecycle(place, f"run=mended-{stage}", *bound, code=2)
        assert "data.sources.short has no " in refused.err
        done = lifecycle(place, f"run=mended-{stage}", *job)
        assert "had saved nothing to go on with" in done.err and "short.filters.min_chars" in done.err
        lifecycle(place, f"run=fresh-{stage}", *job)
        mended, fresh = (facts(place / f"outputs/{name}-{stage}") for name in ("mended", "fresh"))
        assert mended.get("result") == fresh.get("result") and mended["status"] == "finished"
        refused = lifecycle(place, f"run=mended-{stage}", *bound, code=2)
        assert "was started with other values of: data.sources.short.filters.min_chars" in refused.err
    assert repr(metrics(place / "outputs/mended-pretrain")["train/loss"]) == repr(metrics(whole)["train/loss"])


def test_shards_want_no_raw_files_named_and_a_dry_run_counts_their_tokens(place: Path, whole: Path) -> None:
    done = lifecycle(place, "stage=prepare", "run=cut", "data.tokenizer=whole")  # by the run's name
    assert facts(whole)["tokenizer"] == facts(place / "outputs/cut")["result"]["short"]["training"]["tokenizer"]
    tokens = facts(place / "outputs/cut")["result"]["short"]["training"]["tokens"]
    assert f"{tokens:,} tokens" in done.out
    words = ("run=of-shards", "data.tokenizer=whole", *SHORT, "data.prepared=cut", "data.sources.short.path=null")
    assert f"short: its shards hold {tokens:,} tokens" in lifecycle(place, *words, "dry_run=true").out
    lifecycle(place, *words)
    lifecycle(place, *words[1:-1], "run=named-too")
    losses = [repr(metrics(place / f"outputs/{run}")["train/loss"]) for run in ("of-shards", "named-too")]
    assert losses[0] == losses[1]


def test_a_run_goes_on_where_its_files_were_moved_to(place: Path, whole: Path) -> None:
    cut_back(whole, place / "outputs/moved", 2)
    (place / "elsewhere").mkdir()
    for name in ("long", "short", "tiny", "held"):
        shutil.copy(place / f"{name}.jsonl", place / "elsewhere")
    lifecycle(place, "run=moved", *SHORT, "data.root=elsewhere")
    done = lifecycle(place, "run=moved", *SHORT, "data.root=elsewhere", "data.sources.short.path=tiny.jsonl", code=2)
    assert "other values of: data.sources.short.path" in " ".join(done.err.split())
    assert repr(metrics(place / "outputs/moved")["train/loss"]) == repr(metrics(whole)["train/loss"])


def test_a_tokenizer_folder_that_changed_is_refused_by_every_way_in(place: Path, whole: Path) -> None:
    shutil.copytree(whole / "tokenizer", place / "named")
    named = ("data.tokenizer=named", *SHORT)
    lifecycle(place, "run=named", *named, "stage.max_steps=2")
    another_tokenizer(place / "named")
    done = lifecycle(place, "run=named", *named, code=2)
    assert facts(place / "outputs/named")["tokenizer"][:16] in done.err and "data.tokenizer=named" in done.err
    another_tokenizer(place / "outputs/named/tokenizer")
    done = lifecycle(place, "run=child", "init_from=named@2", *SHORT, code=2)
    assert "init_from=named@2" in done.err and "was trained with that of hash" in " ".join(done.err.split())


def test_a_parent_whose_tokenizer_changed_after_the_child_began_is_refused(place: Path, whole: Path) -> None:
    shutil.copytree(whole, place / "outputs/parent")
    lifecycle(place, "run=heir", "init_from=parent", *SHORT, "stage.max_steps=2")
    another_tokenizer(place / "outputs/parent/model")
    done = lifecycle(place, "run=heir", "init_from=parent", *SHORT, code=2)
    assert "was trained with that of hash" in " ".join(done.err.split()) and "Traceback" not in done.err


def test_preparing_goes_on_with_the_tokenizer_that_made_the_first_shards(place: Path) -> None:
    rows = [f"word{n % 7} and {n}" for n in range(200)]
    write_rows(place / "mine.jsonl", rows)
    words = ("stage=prepare", "run=shards", "data=files", "data.sources.mine.path=mine.jsonl", SMALL)
    lifecycle(place, *words)
    run = place / "outputs/shards"
    before = (run / "tokenizer/tokenizer.json").read_bytes()
    (run / "run.json").write_text(json.dumps(facts(run) | {"status": "failed"}))  # killed before its end
    write_rows(place / "mine.jsonl", [*rows, "zebra quagga " * 500])
    lifecycle(place, *words)
    assert (run / "tokenizer/tokenizer.json").read_bytes() == before
    meta = facts(run, "prepared/mine/training/meta.json")
    assert meta["documents"] + facts(run, "prepared/mine/validation/meta.json")["documents"] == 201
