"""Reads a checkpoint in shards as torch wrote it, and executes nothing of it.

Unpickling executes code. torch unpickles `.metadata`, its map of the shards, and every value that is no tensor; here
the map may name the classes it is made of and no others, values are read with weights_only, and the map may point to
files of this checkpoint alone.
"""

from __future__ import annotations

import pickle
from enum import Enum, EnumType
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from lifecycle.checkpoint.manifest import check_hashes, damage, read_manifest

METADATA = ".metadata"
_MAP, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_NAMED = {
    *((_MAP, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    *((_MAP, f"{kind}Metadata") for kind in ("TensorStorage", "BytesStorage", "ChunkStorage")),
    (_MAP, "TensorProperties"),
    (_FILES, "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
}
"""What the map is made of, beside torch's dtypes."""


class ShardReader(dcp.FileSystemReader):
    """torch's reader of the shards in `path`; the map is read once its hash is right. Raises `CheckpointError`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._folder = path

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp.Metadata:
        """The map."""
        manifest = read_manifest(self._folder)
        check_hashes(self._folder, manifest, [METADATA])
        with (self._folder / METADATA).open("rb") as file:
            try:
                found = _MapReader(file).load()
            except (pickle.UnpicklingError, AttributeError, TypeError, ValueError) as error:
                raise damage(self._folder, METADATA, str(error), "torch's map of the shards") from error
        if not isinstance(found, dcp.Metadata):
            raise damage(self._folder, METADATA, f"a {type(found).__name__}", "torch's map of the shards")
        for info in (found.storage_data or {}).values():
            if info.relative_path not in manifest.files:
                raise damage(self._folder, METADATA, f"a shard in {info.relative_path}", "files of this checkpoint")
        found.storage_meta = found.storage_meta or dcp.metadata.StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class PlainPlanner(DefaultLoadPlanner):
    """torch's planner; what is no tensor is read with weights_only."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """Put a value that is no tensor into its place."""
        plain = torch.load(value, weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], plain)


class _MapReader(pickle.Unpickler):
    def find_class(self, module_name: str, name: str) -> Any:
        if module_name == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module_name, name) == ("builtins", "getattr"):
            return _member  # by which Python 3.11.2 names members of enumerations, and 3.11.7 does not
        if (module_name, name) not in _NAMED:
            raise pickle.UnpicklingError(f"it names {module_name}.{name}")
        return super().find_class(module_name, name)


def _member(owner: Any, name: str) -> Enum:
    if not (isinstance(owner, EnumType) and name in owner.__members__):
        raise pickle.UnpicklingError(f"it asks for {name} of what is no enumeration that has it")
    member: Enum = owner.__members__[name]
    return member
