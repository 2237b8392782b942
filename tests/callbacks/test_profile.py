import gzip
import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from lifecycle.callbacks import observers
from lifecycle.callbacks.profile import Profile
from lifecycle.callbacks.progress import ProgressDisplay

CONF = Path(__file__).parents[2] / "conf" / "callbacks"


def steps(profile: Profile, count: int, *, rank: int = 0) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=rank == 0)
    stage: Any = None
    for step in range(count):
        profile.on_train_batch_start(trainer, stage, None, step)
        torch.ones(64, 64) @ torch.ones(64, 64)
        profile.on_train_batch_end(trainer, stage, None, None, step)
    profile.on_train_end(trainer, stage)


def test_a_profile_leaves_a_trace_and_a_table(tmp_path: Path) -> None:
    steps(Profile(folder=tmp_path, steps=2, after_steps=1), 5)
    trace = json.loads(gzip.decompress((tmp_path / "profile/trace.json.gz").read_bytes()))
    products = [event for event in trace["traceEvents"] if event.get("name") == "aten::mm"]
    assert len(products) == 2  # of the profiled steps alone
    assert "aten::mm" in (tmp_path / "profile/top_ops.txt").read_text()


def test_a_run_that_is_cut_short_leaves_what_was_seen(tmp_path: Path) -> None:
    steps(Profile(folder=tmp_path, steps=100, after_steps=1), 3)
    assert (tmp_path / "profile/top_ops.txt").exists()


@pytest.mark.parametrize(("rank", "count"), [(1, 5), (0, 1)])
def test_other_ranks_and_runs_without_a_profiled_step_write_nothing(tmp_path: Path, rank: int, count: int) -> None:
    steps(Profile(folder=tmp_path, steps=2, after_steps=1), count, rank=rank)
    assert not (tmp_path / "profile").exists()


def test_observers_are_what_the_config_asks_for(tmp_path: Path) -> None:
    def kinds(**changes: Any) -> list[type]:
        wanted = {"progress": True, "progress_seconds": 10.0, "profile_steps": None, "profile_after_steps": 10}
        return [type(callback) for callback in observers(folder=tmp_path, **{**wanted, **changes})]

    assert kinds() == [ProgressDisplay]
    assert kinds(progress=False) == []
    assert kinds(profile_steps=3) == [ProgressDisplay, Profile]


def test_the_configs_name_the_arguments() -> None:
    default, profile = (yaml.safe_load((CONF / f"{name}.yaml").read_text()) for name in ("default", "profile"))
    assert default.pop("_target_") == "lifecycle.callbacks.observers"
    assert {"folder", *default} == set(inspect.signature(observers).parameters)
    assert profile.pop("defaults") == ["default", "_self_"]
    assert set(profile) <= set(default)
