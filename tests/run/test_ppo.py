"""PPO end to end: it goes on bit for bit, and what it leaves is a plain language model."""

import json
import random
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from tests.run.cli import assert_same_run, cut_back, facts, kill_after, lifecycle, metrics, step_folder


def words(place: Path, kind: str, steps: int, *, parent: str = "whole") -> tuple[str, ...]:
    rows = [{"instruction": f"{n} and {n + 1}?", "output": str(n)} for n in range(40)]
    (place / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {"asked": {"path": "asked.jsonl", "format": "instruction", "validation": {"ratio": 0.1, "seed": 1}}}
    node = {"defaults": ["_engine", "_self_"], "tokenizer": "unused", "shuffle_buffer": 64, "sources": sources}
    (place / "conf/data/asked.yaml").write_text(yaml.safe_dump(node, sort_keys=False))
    return (
        "stage=ppo",
        f"init_from={parent}",
        f"stage.critic.kind={kind}",
        "stage.critic.warmup_steps=1",
        "stage.critic.lr=1e-3",
        "stage.rewards=exact_match",
        "stage.preflight.prompts=0",
        "stage.kl.coefficient=0.1",
        "stage.kl.target=0.05",
        "stage.prompts_per_step=2",
        "stage.samples_per_prompt=2",
        "stage.updates_per_rollout=2",
        "stage.sampling.max_new_tokens=6",
        "stage.sequence_length=64",
        "stage.optimizer.lr=1e-4",
        "stage.max_epochs=null",
        "stage.global_batch_tokens=null",
        f"stage.max_steps={steps}",
        "data=asked",
        "checkpoint.every_steps=2",
        "checkpoint.keep_last=99",
        "validation.every_steps=2",
    )


@pytest.mark.parametrize("kind", ["head", "separate"])
def test_it_goes_on_bit_for_bit_and_leaves_a_plain_model(place: Path, whole: Path, kind: str) -> None:
    given = words(place, kind, 4)
    lifecycle(place, f"run={kind}", *given)
    run = place / "outputs" / kind
    cut_back(run, place / "outputs" / f"{kind}-again", 2)
    lifecycle(place, f"run={kind}-again", *given)
    assert facts(place / "outputs" / f"{kind}-again")["resumed"] == 1
    assert_same_run(place / "outputs" / f"{kind}-again", run)
    ours = {name for file in (run / "model").glob("*.safetensors") for name in load_file(file)}
    theirs = {name for file in (whole / "model").glob("*.safetensors") for name in load_file(file)}
    assert ours == theirs and metrics(run)["critic/explained_variance"][-1] is not None
    assert any(name.startswith("critic.") for name in load_file(step_folder(run, 4) / "weights.safetensors"))
    for number, parent in enumerate((kind, f"{kind}@2")):
        lifecycle(place, f"run={kind}-{number}", *words(place, kind, 1, parent=parent), "stage.optimizer_state=parent")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["head", "separate"])
def test_a_run_that_is_killed_at_ten_moments_ends_as_it_would_have(place: Path, whole: Path, kind: str) -> None:
    given = words(place, kind, 40)
    lifecycle(place, f"run=long-{kind}", *given)
    draw = random.Random(5)
    for _ in range(10):
        assert kill_after(place, f"run=killed-{kind}", *given, checkpoints=draw.randint(1, 2))
    lifecycle(place, f"run=killed-{kind}", *given)
    assert_same_run(place / "outputs" / f"killed-{kind}", place / "outputs" / f"long-{kind}")
