"""Rewards by a reward model, end to end: it is in the lineage, a run that goes on asks the same one, and whatever stops
a run, it goes on as the run that was not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.run.cli import assert_same_run, cut_back, facts, lifecycle, make_texts, metrics
from tests.run.prompts import write_prompts

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
    assert_same_run(run, other)
    here, there = metrics(run), metrics(other)
    told = [name for name in here if name.startswith(("policy/", "rollout/", "reward/", "rlaif/", "preference/"))]
    assert len(told) >= 8 and all(here[name] == there[name] for name in told if "per_second" not in name)


@pytest.mark.parametrize("way", ["grpo", "online_dpo"])
def test_a_run_that_was_stopped_goes_on_as_the_run_that_was_not(way: str, place: Path, judge: Path) -> None:
    whole, parts = place / f"outputs/liked-{way}", place / f"outputs/parts-{way}"
    lifecycle(place, f"run={whole.name}", *SAMPLES, *WAYS[way])
    assert facts(whole)["reward_model"]["path"] == str(judge)
    assert facts(whole)["reward_model"]["sha256"] != facts(whole)["parent"]["sha256"]
    told = metrics(whole)
    assert len({value for value in told["reward/reward_model"] if value is not None}) == 8
    cut_back(whole, parts, 4)
    lifecycle(place, f"run={parts.name}", *SAMPLES, *WAYS[way])
    assert_same(parts, whole)
