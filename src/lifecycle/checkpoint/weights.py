"""Parts of a committed checkpoint (weights, optimizer, state of the stage) for a run that starts from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lifecycle.checkpoint.load import load
from lifecycle.checkpoint.manifest import check_hashes, read_manifest, verify
from lifecycle.checkpoint.snapshot import TREE, WEIGHTS

SHARDED = "state_dict."


def load_optimizer(path: Path) -> dict[str, Any]:
    """The optimizer's `state_dict` in the checkpoint `path`, on the CPU. Raises `CheckpointError` for damage, and for
    one that was saved in shards."""
    state: dict[str, Any] = load(path)["optimizer_states"][0]
    return state


def is_sharded(path: Path) -> bool:
    """Whether the checkpoint `path` was saved by hardware.strategy=fsdp."""
    return WEIGHTS not in read_manifest(path).files


def load_stage(path: Path) -> dict[str, Any]:
    """The stage's state in the checkpoint `path`, without its large tensors. Raises `CheckpointError` for damage."""
    check_hashes(path, read_manifest(path), [TREE])
    state: dict[str, Any] = torch.load(path / TREE, weights_only=True, map_location="cpu").get("stage", {})
    return state


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of `state_dict` of the checkpoint `path`, sharded or not, whole and on the CPU.

    Nothing is read before its hash is right. Raises `CheckpointError` for damage.
    """
    manifest = read_manifest(path)
    if WEIGHTS in manifest.files:
        check_hashes(path, manifest, [WEIGHTS])
        return load_file(path / WEIGHTS)
    import torch.distributed.checkpoint as dcp  # here: what few read, and the check of a config does not
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from lifecycle.checkpoint.shard_reader import PlainPlanner, ShardReader

    verify(path)
    reader = ShardReader(path)
    found = reader.read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="cpu")
        for name, entry in found.items()
        if name.startswith(SHARDED) and isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(dict(state), storage_reader=reader, planner=PlainPlanner(), no_dist=True)
    return {name.removeprefix(SHARDED): tensor for name, tensor in state.items()}
