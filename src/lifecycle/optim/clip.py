"""Gradient clipping by the global norm, for plain and sharded (DTensor) gradients alike, without a device sync."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lifecycle.system.shards import is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement

    Layout = tuple[DeviceMesh, tuple[Placement, ...]]


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """Scale all gradients by min(1, max_norm / norm) in place; return the norm before that, a float32 scalar.

    The norm is the L2 norm of all gradients as one vector, over all shards (one all-reduce for each way of sharding).
    `max_norm=None` measures only. Where the norm is NaN or infinite no gradient is changed, so that the caller can find
    the parameter that it comes from. The result stays on the device: the only synchronisation is the caller's read.
    """
    by_layout: dict[Layout | None, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and is_sharded(gradient):
            by_layout[(gradient.device_mesh, tuple(gradient.placements))].append(gradient.to_local())
        elif gradient is not None:
            by_layout[None].append(gradient)
    if not by_layout:
        return torch.zeros((), dtype=torch.float32, device="cpu")
    squares = [_global_square(gradients, layout) for layout, gradients in by_layout.items()]
    norm = torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt().float()
    if max_norm is None:
        return norm
    # 1e-6 as in torch.nn.utils.clip_grad_norm_, so that both give the same gradients
    factor = torch.where(norm.isfinite(), (max_norm / (norm + 1e-6)).clamp(max=1.0), 1.0)
    for gradients in by_layout.values():
        torch._foreach_mul_(gradients, factor.to(gradients[0].device))
    return norm


def _global_square(gradients: list[Tensor], layout: Layout | None) -> Tensor:
    """Sum of squares of local gradients, float64; when sharded, summed over the mesh dimensions that shard them."""
    # fp64: the sum then hardly depends on how many shards it was made from
    square = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
    if layout is None:
        return square
    from torch.distributed.tensor import DTensor, Partial, Replicate  # here: see `shards`

    mesh, placements = layout
    partial = [Partial() if placement.is_shard() else Replicate() for placement in placements]
    return DTensor.from_local(square, mesh, partial, run_check=False).full_tensor()
