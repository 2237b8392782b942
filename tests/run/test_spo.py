"""Single-stream policy optimisation from a finished run, end to end: killed or stopped, it goes on as the run that was
not."""

from pathlib import Path

import pytest
import torch
from tests.run.cli import cut_back, facts, lifecycle, metrics
from tests.run.prompts import assert_same_samples, kill_at_random, write_prompts

SPO = (
    "stage=spo",
    "data=told",
    "init_from=whole",
    "stage.rewards={exact_match: 0.5, length: 0.5}",
    "stage.grading.target_words=4",
    "stage.preflight.prompts=0",
    "stage.global_batch_tokens=null",
    "stage.prompts_per_step=8",
    "stage.chosen_per_step=4",
    "stage.start_samples=2",
    "stage.half_life=1.0",
    "stage.sequence_length=48",
    "stage.sampling.max_new_tokens=12",
    "stage.sampling.top_k=20",
    "stage.updates_per_rollout=2",
    "stage.kl={coefficient: 0.1, target: 0.01}",
    "stage.max_epochs=null",
    "stage.max_steps=12",
    "stage.optimizer.lr=1e-3",
    "checkpoint.every_steps=4",
    "validation.every_steps=4",
    "checkpoint.keep_last=99",
    "logging.every_steps=1",
)


@pytest.fixture(scope="module", autouse=True)
def new_data(place: Path, whole: Path) -> None:
    """Few prompts, which come again."""
    write_prompts(place, "told")


def assert_same(run: Path, other: Path) -> None:
    """The same run, and what was told of its samples and prompts."""
    assert_same_samples(run, other, told=("spo/",), least=14)


@pytest.mark.parametrize("variant", ["paper", "recipe"])
def test_a_run_that_was_stopped_goes_on_as_the_run_that_was_not(variant: str, place: Path) -> None:
    whole, parts = place / f"outputs/spo-{variant}", place / f"outputs/spo-parts-{variant}"
    words = (*SPO, f"stage.variant={variant}")
    lifecycle(place, f"run={whole.name}", *words)
    told = metrics(whole)
    started = [int(value or 0) for value in told["spo/start_samples"]]
    assert 0 < sum(started) == 2 * max(int(value or 0) for value in told["spo/prompts"])
    cut_back(whole, parts, 4)
    lifecycle(place, f"run={parts.name}", *words)
    assert_same(parts, whole)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_is_the_run_that_was_not(place: Path) -> None:
    longer = (*SPO, "stage.max_steps=60", "checkpoint.every_steps=2")
    lifecycle(place, "run=spo-long", *longer)
    run = place / "outputs/spo-killed"
    kill_at_random(place, "run=spo-killed", *longer, seed=6, kills=20, last=60)
    assert_same(run, place / "outputs/spo-long")


RANKS = ("hardware.workers=0", "hardware.precision=fp32", "stage.max_steps=6", "checkpoint.every_steps=6")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_take_the_steps_of_one(strategy: str, place: Path) -> None:
    one, two = place / "outputs/spo-one", place / f"outputs/spo-two-{strategy}"
    if not one.exists():
        lifecycle(place, "run=spo-one", *SPO, *RANKS)
    lifecycle(place, f"run={two.name}", *SPO, *RANKS, "hardware.devices=2", f"hardware.strategy={strategy}", cold=True)
    here, there = metrics(one), metrics(two)
    names = ["train/loss", "train/grad_norm", "rollout/reward", "spo/value", "spo/kept", "spo/start_samples"]
    for name in names:
        assert there[name] == [None if v is None else pytest.approx(v, rel=1e-3, abs=1e-4) for v in here[name]], name
    assert facts(one, "ledger.json") == facts(two, "ledger.json")
    assert torch.isfinite(torch.tensor([v for v in there["train/loss"] if v is not None])).all()
