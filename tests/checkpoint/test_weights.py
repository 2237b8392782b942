"""The weights of a checkpoint come out alone, whole, and only if they are what was written."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from lifecycle.checkpoint import CheckpointError, CommittedCheckpointIO, Entry
from lifecycle.checkpoint.protocol import commit
from lifecycle.checkpoint.weights import is_sharded, load_stage, load_weights

WEIGHTS = {"model.a": torch.arange(6.0).view(2, 3), "model.b": torch.ones(4, dtype=torch.bfloat16)}


def test_weights_come_out_alone(tmp_path: Path) -> None:
    path = tmp_path / "step-00000003"
    saved = {"state_dict": WEIGHTS, "optimizer_states": [{"m": torch.zeros(9)}], "global_step": 3}
    CommittedCheckpointIO(async_save=False).save_checkpoint(saved, path)
    assert_weights(path)
    assert not is_sharded(path)
    damaged = bytearray((path / "weights.safetensors").read_bytes())
    damaged[-1] ^= 1
    (path / "weights.safetensors").write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"weights.safetensors: got sha256"):
        load_weights(path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_are_put_together(tmp_path: Path) -> None:
    aside, path = tmp_path / ".staging", tmp_path / "step-00000003"
    dcp.save({"state_dict": dict(WEIGHTS), "optimizer_0": {"m": torch.zeros(9)}}, checkpoint_id=aside, no_dist=True)
    commit(aside, path, {file.name: entry(file) for file in aside.iterdir()}, step=3, tokens=None)
    assert_weights(path)
    assert is_sharded(path)


def test_what_the_stage_kept_comes_out_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "step-00000003"
    kept = {"rope_theta": 5e4, "springs": [torch.zeros(3)]}
    saved = {"state_dict": WEIGHTS, "global_step": 3, "stage": kept}
    CommittedCheckpointIO(async_save=False).save_checkpoint(saved, path)
    for name in ("weights.safetensors", "state.safetensors"):  # damage there does not matter here
        (path / name).write_bytes(bytes((path / name).stat().st_size))
    assert load_stage(path)["rope_theta"] == 5e4
    (path / "state.pt").write_bytes(bytes((path / "state.pt").stat().st_size))
    with pytest.raises(CheckpointError, match="state.pt"):
        load_stage(path)


def entry(file: Path) -> Entry:
    import hashlib

    content = file.read_bytes()
    return Entry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def assert_weights(path: Path) -> None:
    found = load_weights(path)
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in WEIGHTS.items())
