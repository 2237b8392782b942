"""The weights of a checkpoint come out alone, whole, and only if they are what was written."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, TensorProperties

from lifecycle.checkpoint import CheckpointError, Entry
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.checkpoint.protocol import commit
from lifecycle.checkpoint.shard_reader import PlainPlanner, ShardReader
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


class Runs:
    """Pickled, it makes a folder wherever it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.place),)


def sharded(tmp_path: Path, change: Callable[[dcp.Metadata], Any], **more: Any) -> Path:
    """A checkpoint in shards whose map is `change` of the right one, with every hash right."""
    aside, path = tmp_path / ".staging", tmp_path / "step-00000003"
    dcp.save({"state_dict": {**WEIGHTS, **more}}, checkpoint_id=aside, no_dist=True)
    found = pickle.loads((aside / ".metadata").read_bytes())
    (aside / ".metadata").write_bytes(pickle.dumps(change(found)))
    commit(aside, path, {file.name: entry(file) for file in aside.iterdir()}, step=3, tokens=None)
    return path


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_map_of_shards_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    path = sharded(tmp_path, lambda found: Runs(tmp_path / "ran"))
    with pytest.raises(CheckpointError, match=r".metadata: got it names posix.mkdir"):
        load_weights(path)
    assert not (tmp_path / "ran").exists()


class Looks:
    """Pickled, it is an attribute of something, as Python 3.11.2 writes a member of an enumeration."""

    def __init__(self, owner: type, name: str) -> None:
        self.asked = owner, name

    def __reduce__(self) -> tuple[Any, tuple[type, str]]:
        return getattr, self.asked


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_map_of_shards_of_an_early_python_is_read(tmp_path: Path) -> None:
    def earlier(found: dcp.Metadata) -> dcp.Metadata:
        for meta in found.state_dict_metadata.values():
            properties = meta.properties  # type: ignore[union-attr]
            properties.__class__ = Written
        return found

    assert_weights(sharded(tmp_path, earlier))


class Written(TensorProperties):
    """Pickled as Python 3.11.2 does."""

    def __reduce__(self) -> tuple[Any, ...]:
        dtype, layout, grad, encoding, pinned = self.__getstate__()
        return TensorProperties, (), (dtype, layout, grad, Looks(type(encoding), encoding.name), pinned)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("owner", "name"), [(dcp.Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "mro")])
def test_a_map_of_shards_looks_up_members_alone(tmp_path: Path, owner: type, name: str) -> None:
    path = sharded(tmp_path, lambda found: Looks(owner, name))
    with pytest.raises(CheckpointError, match=f"asks for {name} of what is no enumeration"):
        load_weights(path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_map_of_shards_points_to_files_of_its_checkpoint_alone(tmp_path: Path) -> None:
    def elsewhere(found: dcp.Metadata) -> dcp.Metadata:
        for info in (found.storage_data or {}).values():
            info.relative_path = "../other.distcp"
        return found

    with pytest.raises(CheckpointError, match=r"a shard in \.\./other.distcp"):
        load_weights(sharded(tmp_path, elsewhere))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_value_in_a_shard_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    path = sharded(tmp_path, lambda found: found, value=Runs(tmp_path / "ran"))
    state = {"state_dict": {"value": 0}}
    with pytest.raises(CheckpointException, match="Weights only load failed"):
        dcp.load(state, storage_reader=ShardReader(path), planner=PlainPlanner(), no_dist=True)
    assert not (tmp_path / "ran").exists()


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
