"""Data of short prompts with a known answer, for the runs that sample, and the laws that all of these runs keep."""

import json
import random
from pathlib import Path

import yaml
from tests.run.cli import assert_same_run, kill_after, lifecycle, make_texts, metrics, newest


def write_prompts(place: Path, name: str) -> None:
    """`data=NAME` in a place of toy runs: 60 prompts, which come again."""
    rows = [{"prompt": text[:12], "completion": text[12:20] or "."} for text in make_texts(name, 60, 20)]
    (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": f"{name}.jsonl", "format": "prompt_completion", "validation": {"ratio": 0.2, "seed": 1}}
    node = {
        "defaults": ["_engine", "_self_"],
        "tokenizer": "unused",
        "shuffle_buffer": 64,
        "sources": {name: source},
    }
    (place / f"conf/data/{name}.yaml").write_text(yaml.safe_dump(node, sort_keys=False))


def assert_same_samples(run: Path, other: Path, *, told: tuple[str, ...] = (), least: int) -> None:
    """The same run, and what was told of its samples. told: beginnings of the names of further metrics. least: metrics
    that are told of them."""
    assert_same_run(run, other)
    here, there = metrics(run), metrics(other)
    names = [name for name in here if name.startswith(("policy/", "rollout/", "reward/", *told))]
    assert len(names) >= least and all(here[name] == there[name] for name in names if "per_second" not in name)


def kill_at_random(place: Path, *overrides: str, seed: int, kills: int, last: int) -> None:
    """Kill the run that `overrides` name `kills` times, soon after its start and after a checkpoint in turn, then let
    it come to its end, step `last`."""
    name = next(word.removeprefix("run=") for word in overrides if word.startswith("run="))
    run, draw = place / "outputs" / name, random.Random(seed)
    for number in range(kills):
        done, soon = newest(run), number % 2 == 0
        wait = draw.uniform(0.2, 1.5) if soon else 0.0
        kill_after(place, *overrides, checkpoints=not soon, wait=wait)
        assert soon or newest(run) > done or newest(run) == last
    lifecycle(place, *overrides)
