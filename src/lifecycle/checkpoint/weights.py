"""The weights of a committed checkpoint, or its optimizer, without the rest: for a run that starts from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lifecycle.checkpoint.io import load
from lifecycle.checkpoint.manifest import check_hashes, read_manifest, verify
from lifecycle.checkpoint.snapshot import WEIGHTS

SHARDED = "state_dict."


def load_optimizer(path: Path) -> dict[str, Any]:
    """The optimizer's `state_dict` in the checkpoint `path`, on the CPU. Raises `CheckpointError` for damage, and for
    one that was saved in shards."""
    state: dict[str, Any] = load(path)["optimizer_states"][0]
    return state


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of `state_dict` of the checkpoint `path`, sharded or not, whole and on the CPU.

    Nothing is read before its hash is right. Raises `CheckpointError` for damage.
    """
    manifest = read_manifest(path)
    if WEIGHTS in manifest.files:
        check_hashes(path, manifest, [WEIGHTS])
        return load_file(path / WEIGHTS)
    verify(path)
    reader = dcp.FileSystemReader(path)
    found = reader.read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in found.items()
        if name.startswith(SHARDED) and isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(dict(state), storage_reader=reader, no_dist=True)
    return {name.removeprefix(SHARDED): tensor for name, tensor in state.items()}
