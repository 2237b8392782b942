"""Rewards by a reward model, end to end: it is in the lineage, a run that goes on asks the same one, and whatever stops
a run, it goes on as the run that was not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.run.cli import TOY, cut_back, facts, lifecycle, make_texts, metrics
from tests.run.prompts import assert_same_samples, kill_at_random, write_prompts
from transformers import AutoModelForSequenceClassification

from lifecycle.config import compose
from lifecycle.runs.dry_run import _frozen, _repeats, _trained_beside
from lifecycle.runs.plan import make_plan

JUDGE = (
    "stage=reward",
    "data=pairs",
    "init_from=whole",
    "stage.max_epochs=null",
    "stage.max_steps=6",
    "stage.optimizer.lr=1e-2",
    "stage.global_batch_tokens=512",
    "validation.every_steps=null",
)
SAMPLES = (
    "data=asked",
    "init_from=whole",
    "stage.global_batch_tokens=null",
    "stage.prompts_per_step=4",
    "stage.samples_per_prompt=3",
    "stage.sequence_length=48",
    "stage.preflight.prompts=0",
    "stage.sampling.max_new_tokens=12",
    "stage.updates_per_rollout=2",
    "stage.max_epochs=null",
    "stage.max_steps=8",
    "stage.optimizer.lr=1e-3",
    "checkpoint.every_steps=4",
    "validation.every_steps=4",
    "checkpoint.keep_last=99",
)
MODEL = ("stage.reward_model.path=judge", "stage.reward_model.clip=3")
WAYS: dict[str, tuple[str, ...]] = {
    "grpo": ("stage=rlaif", *MODEL, "stage.rewards={reward_model: 1, repetition: 0.1}"),
    "online_dpo": ("stage=rlaif", *MODEL, "stage.optimise=online_dpo"),
    "ppo": (
        "stage=ppo",
        *MODEL,
        "stage.rewards=reward_model",
        "stage.critic={kind: separate, init_from: reward_model}",
    ),
    "spo": (
        "stage=spo",
        *MODEL,
        "stage.rewards=reward_model",
        "stage.reward_model.sigmoid=true",
        "stage.samples_per_prompt=1",
        "stage.chosen_per_step=3",
        "stage.start_samples=2",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def judge(place: Path, whole: Path) -> Path:
    """Prompts, and a reward model of a few steps."""
    write_prompts(place, "asked")
    texts = make_texts("judged", 120, 12)
    rows = [{"prompt": t[:14], "chosen": f"{t[14:]} the cat", "rejected": f"old {t[14:]}"} for t in texts]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    node: dict[str, Any] = {"defaults": ["_engine", "_self_"], "tokenizer": "unused", "shuffle_buffer": 64}
    node["sources"] = {"pairs": {"path": "pairs.jsonl", "format": "preference"}}
    (place / "conf/data/pairs.yaml").write_text(yaml.safe_dump(node, sort_keys=False))
    lifecycle(place, "run=judge", *JUDGE)
    return place / "outputs/judge"


def assert_same(run: Path, other: Path) -> None:
    """The same run, and what was told of its samples."""
    assert_same_samples(
        run,
        other,
        told=(
            "rlaif/",
            "preference/",
        ),
        least=8,
    )


def test_a_run_that_was_stopped_goes_on_as_the_run_that_was_not(place: Path, judge: Path) -> None:
    stopped_and_whole("online_dpo", place)
    run = place / "outputs/liked-online_dpo"
    assert facts(run)["reward_model"]["path"] == str(judge)
    assert facts(run)["reward_model"]["sha256"] != facts(run)["parent"]["sha256"]
    told = metrics(run)
    assert len({value for value in told["reward/reward_model"] if value is not None}) == 8
    assert any(told["rlaif/pairs"]) and told["preference/kl"][-1] is not None


def stopped_and_whole(way: str, place: Path) -> None:
    whole, parts = place / f"outputs/liked-{way}", place / f"outputs/parts-{way}"
    lifecycle(place, f"run={whole.name}", *SAMPLES, *WAYS[way])
    cut_back(whole, parts, 4)
    lifecycle(place, f"run={parts.name}", *SAMPLES, *WAYS[way])
    assert_same(parts, whole)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["grpo", "ppo", "spo"])
def test_a_stopped_run_of_another_way_goes_on_too(way: str, place: Path) -> None:
    stopped_and_whole(way, place)


def test_another_reward_model_in_its_place_is_refused(place: Path, judge: Path) -> None:
    shutil.copytree(judge / "model", place / "moved")
    words = ("run=held", *SAMPLES, "stage=rlaif", "stage.reward_model.path=moved", "stage.max_steps=2")
    lifecycle(place, *words, "checkpoint.every_steps=1", "validation.every_steps=null")
    cut_back(place / "outputs/held", place / "outputs/other", 1)
    config = json.loads((place / "moved/config.json").read_text())
    (place / "moved/config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    again = (*words[1:], "run=other", "checkpoint.every_steps=1", "validation.every_steps=null")
    refused = lifecycle(place, *again, code=2)
    assert "it needs those that it began with" in refused.err


def test_a_missing_reward_model_is_said_with_what_to_give(place: Path) -> None:
    for words, says in (
        (("stage=rlaif",), "stage.reward_model.path=RUN"),
        (("stage=rlaif", "stage.reward_model.path=whole"), "predicts tokens, and a reward model ends in a score"),
        (("stage=grpo", "stage.reward_model.path=judge"), "stage.rewards=reward_model"),
        (("stage=spo", "stage.rewards=reward_model", *MODEL), "stage.reward_model.sigmoid=true"),
        (("stage=ppo", "stage.critic.init_from=judge"), "stage.critic.kind=separate"),
    ):
        done = lifecycle(place, "run=never", *SAMPLES, *words, code=2)
        assert says in done.err


def test_the_dry_run_counts_what_is_asked_and_what_is_trained(
    place: Path, judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for way, copies in (("grpo", 1), ("online_dpo", 1), ("ppo", 0)):
        words = [word for word in (*TOY, *SAMPLES, *WAYS[way]) if not word.startswith("data=")]
        plan = make_plan(compose([*words, "data=asked", "dry_run=true"], config_dirs=[place / "conf"]))
        model = plan.model.with_vocab(plan.models["reward_model"].model.vocab)
        scored = plan.models["reward_model"].model.parameters()
        assert _frozen(plan, model) == copies * model.parameters() + scored
        kept = 4 * scored / model.parameters() if way == "ppo" else 0
        assert _trained_beside(plan, model) == pytest.approx(kept)
        critic = scored / model.parameters() if way == "ppo" else 0  # trained, and asked once before that
        assert _repeats(plan, model) == pytest.approx(1 + 1 / 3 + critic * 4 / 3)  # of two updates
    words += ["stage.kl.coefficient=0.1", "stage.kl.refresh_every=5"]  # a reference of the policy's size beside both
    plan = make_plan(compose([*words, "data=asked", "dry_run=true"], config_dirs=[place / "conf"]))
    assert _trained_beside(plan, model) == pytest.approx(kept + 1)
    assert _repeats(plan, model) == pytest.approx(1 + 2 / 3 + critic * 4 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_killed_at_random_moments_is_the_run_that_was_not(way: str, place: Path) -> None:
    longer = (*SAMPLES, *WAYS[way], "stage.max_steps=40", "checkpoint.every_steps=2")
    lifecycle(place, f"run=long-{way}", *longer)
    run = place / f"outputs/killed-{way}"
    kill_at_random(place, f"run=killed-{way}", *longer, seed=6, kills=8, last=40)
    assert_same(run, place / f"outputs/long-{way}")


RANKS = ("hardware.workers=0", "hardware.precision=fp32", "stage.max_steps=4", "checkpoint.every_steps=4")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("way", ["grpo", "online_dpo"])
def test_two_ranks_take_the_steps_of_one(way: str, strategy: str, place: Path) -> None:
    words = (*SAMPLES, *WAYS[way], *RANKS)
    one, two = place / f"outputs/one-{way}", place / f"outputs/two-{way}-{strategy}"
    if not one.exists():
        lifecycle(place, f"run={one.name}", *words)
    lifecycle(place, f"run={two.name}", *words, "hardware.devices=2", f"hardware.strategy={strategy}", cold=True)
    here, there = metrics(one), metrics(two)
    names = ["train/loss", "train/grad_norm", "rollout/reward", "reward/reward_model", "valid/loss"]
    names += ["rlaif/pairs", "preference/kl"] if way == "online_dpo" else ["policy/kl"]
    for name in names:
        assert there[name] == [None if v is None else pytest.approx(v, rel=1e-3, abs=1e-5) for v in here[name]], name


def test_marks_of_a_run_are_the_scores_that_transformers_gives_its_kept_samples(place: Path, judge: Path) -> None:
    import pyarrow.parquet as pq

    words = ("stage=rlaif", "stage.reward_model.path=judge", "stage.keep_rollouts=1", "stage.max_steps=1")
    lifecycle(place, "run=kept", *SAMPLES, *words, "validation.every_steps=null")
    rows = pq.read_table(next((place / "outputs/kept/rollouts").glob("*.parquet"))).to_pylist()
    model = AutoModelForSequenceClassification.from_pretrained(judge / "model").eval()
    tokenizer = json.loads((judge / "tokenizer/tokenizer.json").read_text())
    ids = {one["content"]: one["id"] for one in tokenizer["added_tokens"]}
    end = next(i for name, i in ids.items() if "end" in name)
    assert {row["stop_reason"] for row in rows} >= {"length"}
    for row in rows:
        said = row["token_ids"][:-1] if row["stop_reason"] == "stop_id" else row["token_ids"]
        with torch.no_grad():
            score = model(input_ids=torch.tensor([[*row["prompt_ids"], *said, end]])).logits[0, 0]
        assert row["reward"] == pytest.approx(float(score), abs=1e-5)
