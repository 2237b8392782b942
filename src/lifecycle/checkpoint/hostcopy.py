"""Copies a rank's shards to the host, so that a save in the background can write them while training goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from lifecycle.system.shards import local_part


class HostCopy:
    """Host memory for one snapshot of a rank's shards, taken once and used again while the shards stay the same."""

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []

    def release(self) -> None:
        """Free the memory."""
        for part in (local_part(kept) for kept in self._kept):
            if part.is_pinned():
                torch.cuda.cudart().cudaHostUnregister(part.data_ptr())
        self._kept = []

    def take(self, shards: dict[str, Any]) -> dict[str, Any]:
        """`shards` with every tensor copied to host memory."""
        leaves, tree = tree_flatten(shards)
        tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if [_layout(tensor) for tensor in tensors] != [_layout(tensor) for tensor in self._kept]:
            self.release()
            self._kept = [_on_host(tensor) for tensor in tensors]
        for kept, tensor in zip(self._kept, tensors, strict=True):
            local_part(kept).copy_(local_part(tensor), non_blocking=True)
        for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
            torch.cuda.synchronize(device)
        copies = iter(self._kept)
        copied: dict[str, Any] = tree_unflatten(
            [next(copies) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], tree
        )
        return copied


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, local_part(tensor).shape, tensor.dtype


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Host memory for a tensor or its shard; page-locked for one on a GPU, which copies to such memory fastest."""
    room = tensor.to("cpu", copy=True)
    part = local_part(room)
    if tensor.is_cuda and part.numel():  # where the limit on locked memory forbids it, the copy is only slower
        torch.cuda.cudart().cudaHostRegister(part.data_ptr(), part.nbytes, 0)
    return room
