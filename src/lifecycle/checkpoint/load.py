"""Reads a committed checkpoint back, bit for bit, and verifies it as it does."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifecycle.checkpoint.manifest import CheckpointError, Entry, damage, read_manifest
from lifecycle.checkpoint.snapshot import TREE, HashingReader, join, read_tensors
from lifecycle.errors import UserError


def load(path: Path, device: torch.device | str | None = None) -> dict[str, Any]:
    """Read and verify the checkpoint `path` in one pass."""
    if not path.is_dir():
        raise UserError(f"{path} is no checkpoint folder; wanted one such as outputs/RUN/checkpoints/step-00000100")
    manifest = read_manifest(path)
    if any(name.endswith(".distcp") for name in manifest.files):
        raise CheckpointError(f"checkpoint {path} was saved by hardware.strategy=fsdp: go on with that strategy")
    with ThreadPoolExecutor(thread_name_prefix="load") as threads:
        contents = list(threads.map(lambda name: _read(path, name, manifest.files[name]), manifest.files))
    found = dict(zip(manifest.files, contents, strict=True))
    tree = torch.load(io.BytesIO(found.pop(TREE)), weights_only=True, map_location=device or "cpu")
    tensors: dict[tuple[str, str], Tensor] = {}
    for content in found.values():
        tensors |= content
    if device is not None:
        tensors = {key: tensor.to(device) for key, tensor in tensors.items()}
    checkpoint: dict[str, Any] = join(tree, tensors)
    return checkpoint


def _read(path: Path, name: str, entry: Entry) -> Any:
    """The bytes of state.pt, or the tensors of another file; raises `CheckpointError` unless the hash is right."""
    with (path / name).open("rb") as file:
        reader = HashingReader(file)
        content = reader.read(entry.bytes) if name == TREE else read_tensors(name, entry.bytes, reader)
    if content is None:
        raise damage(path, name, "a header that is none", "the one that was written")
    if reader.hash.hexdigest() != entry.sha256:
        raise damage(path, name, f"sha256 {reader.hash.hexdigest()}", entry.sha256)
    return content
