"""Reinforcement learning from a finished run, end to end: killed or stopped, it goes on as the run that was not."""

from pathlib import Path

import pytest
from tests.run.cli import cut_back, facts, lifecycle, metrics
from tests.run.prompts import assert_same_samples, kill_at_random, write_prompts

GRPO = (
    "stage=grpo",
    "data=asked",
    "init_from=whole",
    "stage.rewards={exact_match: 1, length: 0.5}",
    "stage.grading.target_words=4",
    "stage.preflight.prompts=0",
    "stage.global_batch_tokens=null",
    "stage.prompts_per_step=4",
    "stage.samples_per_prompt=3",
    "stage.sequence_length=48",
    "stage.sampling.max_new_tokens=12",
    "stage.sampling.top_k=20",
    "stage.updates_per_rollout=2",
    "stage.kl={coefficient: 0.1, target: 0.01, refresh_every: 3, refresh_mix: 0.5}",
    "stage.max_epochs=null",
    "stage.max_steps=8",
    "stage.optimizer.lr=1e-3",
    "checkpoint.every_steps=4",
    "validation.every_steps=4",
    "checkpoint.keep_last=99",
)
TALKS = ("stage.environment.name=talking:Talker", "stage.environment.max_observation_tokens=3")
FORMS = {"all": (), "solved": ("stage.drop_solved=true",), "varying": ("stage.varying_prompts=2",), "talks": TALKS}
TALKING = """
from lifecycle.rollout.environments.environment import Observation

class Talker:
    stops = tuple("aeiou")

    def reset(self, record):
        return record.answer[:1]

    def step(self, text):
        value = sum(map(ord, text))
        return Observation(text=text[::-1], failed=value % 3 == 0, done=value % 13 == 0)
"""


@pytest.fixture(scope="module", autouse=True)
def new_data(place: Path, whole: Path) -> None:
    """Prompts with a known answer, and what a policy may talk to."""
    (place / "talking.py").write_text(TALKING)
    write_prompts(place, "asked")


def assert_same(run: Path, other: Path) -> None:
    """The same run, and what was told of its samples."""
    assert_same_samples(run, other, least=9)


def test_a_run_that_was_stopped_goes_on_as_the_run_that_was_not(place: Path) -> None:
    whole, parts = place / "outputs/taught", place / "outputs/taught-parts"
    said = lifecycle(place, "run=taught", *GRPO).err
    assert "held out of 'asked': 11 prompts of " in said and "answered at every measurement" in said
    told = metrics(whole)
    assert facts(whole)["parent"]["path"] == str(place / "outputs/whole")
    assert max(value or 0 for value in told["policy/ratio_max_deviation"]) < 0.05  # bf16, where the machine has it
    assert told["valid/asked/reward"][-1] is not None
    cut_back(whole, parts, 4)
    lifecycle(place, "run=taught-parts", *GRPO)
    assert_same(parts, whole)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["all", "solved", "talks"])
def test_a_run_killed_at_random_moments_is_the_run_that_was_not(form: str, place: Path) -> None:
    longer = (*GRPO, "stage.max_steps=60", "checkpoint.every_steps=2", *FORMS[form])
    lifecycle(place, f"run=long-{form}", *longer)
    run = place / f"outputs/killed-{form}"
    kill_at_random(place, f"run=killed-{form}", *longer, seed=5, kills=20, last=60)
    assert_same(run, place / f"outputs/long-{form}")


RANKS = ("hardware.workers=0", "hardware.precision=fp32", "stage.max_steps=4", "checkpoint.every_steps=4")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_take_the_steps_of_one(form: str, strategy: str, place: Path) -> None:
    words = (*GRPO, *RANKS, "stage.normaliser=prompt", "stage.advantage=batch_std", *FORMS[form])
    one, two = place / f"outputs/one-{form}", place / f"outputs/two-{form}-{strategy}"
    if not one.exists():
        lifecycle(place, f"run=one-{form}", *words)
    lifecycle(place, f"run={two.name}", *words, "hardware.devices=2", f"hardware.strategy={strategy}", cold=True)
    here, there = metrics(one), metrics(two)
    names = ["train/loss", "train/grad_norm", "rollout/reward", "policy/kl", "policy/kl_coefficient", "valid/loss"]
    for name in names:
        assert there[name] == [None if v is None else pytest.approx(v, rel=1e-3, abs=1e-5) for v in here[name]], name
    assert facts(one, "ledger.json") == facts(two, "ledger.json")
