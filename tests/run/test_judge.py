"""A judge behind an endpoint, end to end: a run that goes on gets the marks and tells the costs of the run that was not
stopped, asks nothing twice, and leaves its key nowhere."""

import os
import re
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.rewards.judge.served import Answer, Served, said, serving
from tests.run.cli import assert_same_run, cut_back, facts, lifecycle, metrics, newest
from tests.run.prompts import assert_same_samples, kill_at_random, write_prompts
from tests.run.test_rlaif import SAMPLES

REWARDS = ("stage=grpo", "stage.rewards={judge: 1, preferred: 0.5, length: 0.2}", "stage.grading.target_words=4")
JUDGED = (
    *REWARDS,
    *SAMPLES,
    "stage.judge.model=tester",
    "stage.judge.longest_wait_s=0.01",
    "stage.preflight.prompts=4",
)
PAID = ("stage.judge.price_in=1e4", "stage.judge.price_out=1e5")
SECRET = "sk-of-nobody-0123456789abcdef"


class Moody:
    """Scores by what is asked; some requests fail at first, some questions get no verdict."""

    def __init__(self) -> None:
        self.times = Counter[str]()

    def __call__(self, body: Mapping[str, Any], number: int) -> Answer:
        question = body["messages"][-1]["content"]
        draw = zlib.crc32(re.sub(r"-[0-9a-f]{8}>", ">", question).encode())
        self.times[question] += 1
        if draw % 5 == 0 and self.times[question] == 1:
            return Answer(status=503, body=SECRET.encode())
        if "<a-" in question:
            return said("Better: " + ("A", "B", "tie")[draw % 3])
        return said(f"{SECRET}\nScore: {draw % 12}", prompt_tokens=draw % 90, completion_tokens=7)


@pytest.fixture(scope="module", autouse=True)
def new_data(place: Path, whole: Path) -> None:
    """Prompts with a known answer."""
    write_prompts(place, "asked")


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(Moody()) as one:
        yield one


def words(served: Served, name: str) -> tuple[str, ...]:
    """Of a run whose replies no other run has."""
    return f"run={name}", *JUDGED, *PAID, f"stage.judge.url={served.url}", f"stage.judge.version={name}"


def files_with(text: str, folder: Path) -> list[str]:
    """The files under a folder that hold a text. Others may write there: what is gone as it is read holds none."""
    return subprocess.run(["grep", "-rlF", text, folder], stdout=subprocess.PIPE, text=True).stdout.splitlines()


def assert_same(run: Path, other: Path) -> None:
    """The same run, and what was told of its samples and of the judge."""
    assert_same_samples(run, other, told=("judge/",), least=16)


def test_a_run_goes_on_with_its_marks_and_costs_and_leaves_no_key(place: Path, served: Served) -> None:
    env, given = {"JUDGE_KEY": SECRET}, "stage.judge.key_from=JUDGE_KEY"
    whole, parts = place / "outputs/judged", place / "outputs/judged-parts"
    done = lifecycle(place, *words(served, "judged"), given, env=env)
    told, asked = metrics(whole), len({*served.questions})
    assert {headers["Authorization"] for headers in served.headers} == {f"Bearer {SECRET}"}
    assert (
        0 < max(one or 0 for one in told["judge/unreadable"]) < 1 and max(one or 0 for one in told["judge/failed"]) == 0
    )
    spent = [one for one in told["judge/cost_so_far"] if one is not None]
    assert spent == sorted(spent) and spent[-1] > sum(one or 0 for one in told["judge/cost"]) > 0
    assert SECRET not in done.out + done.err
    for folder in (place / "outputs", Path(os.environ["LIFECYCLE_CACHE"])):
        assert files_with(SECRET, folder) == []
    cut_back(whole, parts, 4)
    mine = words(served, "judged-parts")[:-1]
    again = lifecycle(place, *mine, "stage.judge.version=judged", given, env=env)
    assert len({*served.questions}) == asked and SECRET not in again.out + again.err  # all of it was known
    here, there = metrics(parts), metrics(whole)
    names = [name for name in there if name.startswith("reward/")]
    assert names and all(here[name] == there[name] for name in names)
    assert_same_run(parts, whole)


def test_a_key_that_is_not_set_is_asked_for_before_anything_is_trained(place: Path, served: Served) -> None:
    done = lifecycle(place, *words(served, "keyless"), "stage.judge.key_from=NOT_SET_HERE", code=2)
    assert "export NOT_SET_HERE=" in done.err and not served.bodies
    done = lifecycle(place, *words(served, "keyless"), f"stage.judge.key_from={SECRET}", code=2)
    assert "must be the NAME" in done.err and SECRET not in done.out + done.err
    assert not any(SECRET.encode() in path.read_bytes() for path in (place / "outputs").rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_run_that_may_cost_no_more_ends_and_goes_on_with_more(place: Path, served: Served) -> None:
    rich, poor = words(served, "rich"), words(served, "poor")
    lifecycle(place, *rich)
    cost = max(one or 0 for one in metrics(place / "outputs/rich")["judge/cost_so_far"])
    done = lifecycle(place, *poor, f"stage.judge.max_cost={cost * 0.8:.0f}", code=2)
    assert "higher stage.judge.max_cost" in done.err and newest(place / "outputs/poor") == 4
    assert facts(place / "outputs/poor")["status"] != "finished"
    done = lifecycle(place, *poor, f"stage.judge.max_cost={cost * 0.8:.0f}", code=2)  # nothing has changed
    lifecycle(place, *poor, "stage.judge.max_cost=1e9")
    assert_same(place / "outputs/poor", place / "outputs/rich")


@pytest.mark.slow
def test_a_run_killed_at_random_moments_asks_again_only_what_was_under_way(place: Path, served: Served) -> None:
    longer = ("stage.max_steps=40", "checkpoint.every_steps=3")
    lifecycle(place, *words(served, "long"), *longer)
    alone = len(served.bodies)
    run = place / "outputs/killed"
    kill_at_random(place, *words(served, "killed"), *longer, seed=3, kills=20, last=40)
    assert_same(run, place / "outputs/long")
    assert len(served.bodies) <= 2 * alone + 20 * 16


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_take_the_steps_of_one(strategy: str, place: Path, served: Served) -> None:
    fp32 = ("hardware.precision=fp32", "stage.max_steps=4")
    one, two = place / "outputs/one", place / f"outputs/two-{strategy}"
    if not one.exists():
        lifecycle(place, *words(served, "one"), *fp32)
    ranks = ("hardware.devices=2", f"hardware.strategy={strategy}")
    lifecycle(place, *words(served, two.name), *fp32, *ranks, cold=True)
    here, there = metrics(one), metrics(two)
    of_judge = ("judge/failed", "judge/unreadable", "judge/criterion/helpful", "reward/judge", "reward/preferred")
    for name in ("train/loss", "rollout/reward", *of_judge):
        assert there[name] == [None if v is None else pytest.approx(v, rel=1e-3, abs=1e-5) for v in here[name]], name
