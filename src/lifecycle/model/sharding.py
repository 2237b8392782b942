"""Sharding of a decoder over devices: FSDP2, block by block (arXiv 2304.11277; torch's `fully_shard`).

Norms and routers stay whole and in fp32 on every device: rounded to bf16 they would send tokens to other experts than
one device does, and they are a thousandth of the weights. The ranks average their gradients once a step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lifecycle.model.decoder import Decoder, fill
from lifecycle.model.layers.moe import Router
from lifecycle.model.layers.norm_swiglu import RMSNorm
from lifecycle.system.shards import local_part


def shard(model: Decoder, mesh: DeviceMesh, *, param_dtype: torch.dtype, reduce_dtype: torch.dtype) -> None:
    """Shard in place over a one-dimensional mesh: weights and optimizer state fp32 in parts, compute in `param_dtype`,
    gradients summed in `reduce_dtype`; norms and routers stay whole (`kept_whole`).

    Each block is gathered for its own forward and backward pass only. The root (embedding, head) stays gathered
    between them, because the loss reads `head_weight` outside the model's forward pass.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # here: a run on one device does without

    whole = set(kept_whole(model))
    # Inputs are not cast: hidden states have the type of the embedding already, and the rotary angles are fp32.
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=whole)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False, ignored_params=whole)


def kept_whole(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that every rank holds whole, in the order of the modules."""
    modules = [module for module in model.modules() if isinstance(module, (RMSNorm, Router))]
    return [parameter for module in modules for parameter in module.parameters(recurse=False)]


@torch.no_grad()
def load_sharded(model: Decoder, weights: Mapping[str, Tensor] | None) -> None:
    """Fill a sharded model from `weights`, which rank 0 alone has (None on the others): one tensor at a time goes out,
    so no rank holds more than its shards and one whole tensor. Every rank must call."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, target in state.items():
        whole = torch.empty(target.shape, dtype=target.dtype, device=local_part(target).device)
        if weights is not None:
            whole.copy_(weights[name])
        torch.distributed.broadcast(whole, src=0)
        fill(target, whole)
