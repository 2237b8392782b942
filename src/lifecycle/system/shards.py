"""Whether a tensor is a sharded one of torch, the part of it that this rank holds, and others shared out as it is.

Where such a tensor exists, its module has been imported: nothing here imports it before, for that takes half a second,
which a run on one device and the check of a config do without.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a `DTensor`."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What of it this rank holds: all of a tensor that is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shared_out(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, on the device of `like` and sharded as it is; a rank keeps its part."""
    whole = whole.to(local_part(like).device)
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # src_data_rank None: nothing is sent
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
