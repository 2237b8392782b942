"""How a decoder is shared out among devices: FSDP2, block by block (arXiv 2304.11277; torch's `fully_shard`)."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lifecycle.model.decoder import Decoder


def shard(model: Decoder, mesh: DeviceMesh, *, param_dtype: torch.dtype, reduce_dtype: torch.dtype) -> None:
    """Shard in place over a one-dimensional mesh: weights and optimizer state fp32 in parts, compute in `param_dtype`,
    gradients summed in `reduce_dtype`.

    Each block is gathered for its own forward and backward pass only. The root (embedding, final norm, head) stays
    gathered between them, because the loss reads `head_weight` outside the model's forward pass.
    """
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
