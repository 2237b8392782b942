"""A stage's decoder as its run wants it: whole or sharded, compiled or not, with new weights or a parent's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lifecycle.model import Decoder, ModelConfig, best_kernel, build, check_kernel, compile_model
from lifecycle.model.attention import Kernel
from lifecycle.model.sharding import shard
from lifecycle.stages.setup import Setup


def build_for(
    setup: Setup, config: ModelConfig, weights: Mapping[str, Tensor] | None, mesh: DeviceMesh | None
) -> Decoder:
    """The decoder of `config` with `weights` (None: initialised by the run's seed), sharded over `mesh` if there is
    one."""
    model = build(config, seed=setup.seed, activation_checkpointing=setup.activation_checkpointing)
    if weights is not None:
        model.load_state_dict(weights)
    if setup.compile:
        compile_model(model, unit="model" if mesh is None else "block")
    if mesh is not None:
        dtype = torch.bfloat16 if setup.bf16 else torch.float32
        shard(model, mesh, param_dtype=dtype, reduce_dtype=torch.float32)
    return model


def kernel_for(setup: Setup, device: torch.device) -> Kernel:
    """The attention kernel of a run: the config's, or the fastest that is installed."""
    if setup.attention == "auto":
        return best_kernel(device, torch.bfloat16 if setup.bf16 else torch.float32)
    check_kernel(setup.attention, device)
    return setup.attention
