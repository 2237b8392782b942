"""Preference optimisation from a finished run, end to end: killed or stopped, it goes on as the run that was not."""

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.run.cli import (
    assert_same_run,
    cut_back,
    facts,
    kill_after,
    lifecycle,
    make_texts,
    metrics,
    newest,
)

DPO = (
    "stage=dpo",
    "data=pairs",
    "init_from=whole",
    "stage.max_epochs=null",
    "stage.max_steps=8",
    "stage.optimizer.lr=3e-4",
    "checkpoint.every_steps=4",
    "validation.every_steps=4",
    "checkpoint.keep_last=99",
)
KTO = ("stage.loss=kto", "stage.view=unpaired", "data=judged")
FORMS = {"live": ("stage.reference=live",), "cached": ("stage.reference=cached",), "kto": KTO}


@pytest.fixture(scope="module", autouse=True)
def new_data(place: Path, whole: Path) -> None:
    """Pairs whose chosen answers say `river` and never `cat`, some of them too long; and their sides, each alone."""
    pairs, judged = [], []
    for number, text in enumerate(make_texts("answers", 400, 20)):
        prompt, length = f"Tell me of {number % 50}.", 40 if number % 20 == 0 else 1
        sides = {"chosen": f"{text} river " * length, "rejected": text.replace("river", "cat") + " cat"}
        pairs.append({"prompt": prompt, **sides})
        judged += [{"prompt": prompt, "completion": side, "label": k == "chosen"} for k, side in sides.items()]
    for name, rows in (("pairs", pairs), ("judged", judged)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {
            "path": f"{name}.jsonl",
            "format": "preference" if name == "pairs" else "unpaired",
            "validation": {"ratio": 0.1, "seed": 1},
        }
        node = {
            "defaults": ["_engine", "_self_"],
            "tokenizer": "unused",
            "shuffle_buffer": 64,
            "sources": {name: source},
        }
        (place / f"conf/data/{name}.yaml").write_text(yaml.safe_dump(node, sort_keys=False))


def assert_same(run: Path, other: Path) -> None:
    """The same run, and what was told of its preferences."""
    assert_same_run(run, other)
    here, there = metrics(run), metrics(other)
    told = [name for name in here if name.startswith("preference/")]
    assert len(told) >= 8 and all(here[name] == there[name] for name in told)


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_was_stopped_goes_on_as_the_run_that_was_not(form: str, place: Path) -> None:
    whole, parts = place / f"outputs/{form}", place / f"outputs/{form}-parts"
    lifecycle(place, f"run={form}", *DPO, *FORMS[form])
    first = metrics(whole)
    losses = [loss for loss in first["train/loss"] if loss is not None]
    assert losses[0] == pytest.approx(0.5 if form == "kto" else math.log(2), abs=1e-6)
    assert facts(whole)["parent"]["path"] == str(place / "outputs/whole")
    assert {"valid/loss", "preference/margin"} <= first.keys() and not [n for n in first if "perplexity" in n]
    cut_back(whole, parts, 4)
    lifecycle(place, f"run={form}-parts", *DPO, *FORMS[form])
    assert_same(parts, whole)


def test_a_cached_reference_says_what_a_live_one_does_and_reads_no_row_twice(place: Path) -> None:
    live, cached = place / "outputs/live", place / "outputs/cached"
    for run, form in ((live, "live"), (cached, "cached")):
        if not run.exists():
            lifecycle(place, f"run={form}", *DPO, *FORMS[form])
    here, there = metrics(live), metrics(cached)
    for name in ("train/loss", "preference/margin", "valid/loss"):
        assert here[name] == [None if v is None else pytest.approx(v, rel=1e-4, abs=1e-6) for v in there[name]]
    assert facts(live, "ledger.json") == facts(cached, "ledger.json")
    assert sorted(p.name for p in live.glob("quarantine/*")) == sorted(p.name for p in cached.glob("quarantine/*"))


@pytest.mark.parametrize("form", ["live", "cached"])
def test_a_run_whose_parent_has_changed_is_refused(form: str, place: Path) -> None:
    shutil.copytree(place / "outputs/whole", place / f"outputs/parent-{form}")
    words = (*DPO, *FORMS[form], f"init_from=parent-{form}")
    lifecycle(place, f"run=of-{form}", *words, "stage.max_steps=4")
    file = place / f"outputs/parent-{form}/model/model.safetensors"
    weights = load_file(file)
    save_file({name: value + 0.01 * torch.ones_like(value) for name, value in weights.items()}, file, {"format": "pt"})
    said = lifecycle(place, f"run=of-{form}", *words, code=2).err
    assert f"of-{form}' began with weights of hash" in said and "put them back there" in said


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_run_killed_at_random_moments_is_the_run_that_was_not(form: str, place: Path) -> None:
    draw, longer = random.Random(5), (*DPO, "stage.max_steps=60", "checkpoint.every_steps=2", *FORMS[form])
    lifecycle(place, f"run=long-{form}", *longer)
    run = place / f"outputs/killed-{form}"
    for number in range(10):
        done, soon = newest(run), number % 3 == 0
        wait = draw.uniform(0.2, 1.5) if soon else 0.0
        kill_after(place, f"run=killed-{form}", *longer, checkpoints=not soon, wait=wait)
        assert soon or newest(run) > done
    lifecycle(place, f"run=killed-{form}", *longer)
    assert_same(run, place / f"outputs/long-{form}")


RANKS = ("hardware.workers=0", "stage.max_steps=6", "checkpoint.every_steps=6", "validation.every_steps=3")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "strategy"),
    [("live", "ddp"), ("live", "fsdp"), ("cached", "ddp"), ("cached", "fsdp"), ("kto", "ddp"), ("aot", "ddp")],
)
def test_two_ranks_take_the_steps_of_one(form: str, strategy: str, place: Path) -> None:
    summed = {"kto": (), "aot": ("stage.loss=aot",)}.get(form, ("stage.loss={apo_zero: 1.0, nll: 0.5}",))
    words = (*DPO, *FORMS.get(form, ()), *summed, *RANKS)
    one, two = place / f"outputs/one-{form}", place / f"outputs/two-{form}-{strategy}"
    if not one.exists():
        lifecycle(place, f"run=one-{form}", *words)
    shutil.rmtree(place / "cache", ignore_errors=True)
    devices = ("hardware.devices=2", f"hardware.strategy={strategy}")
    lifecycle(place, f"run={two.name}", *words, *devices, env={"LIFECYCLE_CACHE": str(place / "cache")}, cold=True)
    here, there = metrics(one), metrics(two)
    for name in ("train/loss", "train/grad_norm", "preference/margin", "preference/kl", "valid/loss"):
        assert there[name] == [None if v is None else pytest.approx(v, rel=1e-4, abs=1e-6) for v in here[name]], name
    assert facts(one, "ledger.json") == facts(two, "ledger.json")
