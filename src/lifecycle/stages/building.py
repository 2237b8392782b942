"""A stage's decoder as its run wants it: whole or sharded, compiled or not, with new weights or a parent's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lifecycle.errors import UserError
from lifecycle.model import Decoder, ModelConfig, best_kernel, build, check_kernel, compile_model
from lifecycle.model.attention import Kernel
from lifecycle.model.sharding import load_sharded, shard
from lifecycle.stages.setup import Setup


def build_for(setup: Setup, config: ModelConfig, mesh: DeviceMesh | None) -> Decoder:
    """The decoder of `config` with its parent's weights, or initialised by the run's seed; sharded over `mesh` if there
    is one."""
    if mesh is not None:
        return _build_sharded(setup, config, mesh)
    model = build(config, seed=setup.seed, activation_checkpointing=setup.activation_checkpointing)
    if setup.read_weights is not None:
        model.load_state_dict(setup.read_weights())
    if setup.compile:
        compile_model(model, unit="model")
    return model


def _build_sharded(setup: Setup, config: ModelConfig, mesh: DeviceMesh) -> Decoder:
    """Sharded before it has any memory, then filled tensor by tensor: no rank ever holds the whole model."""
    with torch.device("meta"):
        model = Decoder(config, activation_checkpointing=setup.activation_checkpointing)
    if setup.compile:
        compile_model(model, unit="block")
    shard(model, mesh, param_dtype=torch.bfloat16 if setup.bf16 else torch.float32, reduce_dtype=torch.float32)
    model.to_empty(device=torch.device("cpu" if mesh.device_type == "cpu" else f"cuda:{torch.cuda.current_device()}"))
    if setup.read_weights is None:
        model.init_weights(seed=setup.seed)
    else:
        load_sharded(model, _on_rank_0(setup.read_weights))
    return model


def _on_rank_0(read: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor] | None:
    """What rank 0 reads, None on the others; where it cannot be read, all raise the same `UserError`."""
    weights, faults = None, [""]
    if torch.distributed.get_rank() == 0:
        try:
            weights = read()
        except UserError as fault:
            faults = [str(fault)]
    torch.distributed.broadcast_object_list(faults, src=0)
    if faults[0]:
        raise UserError(faults[0])
    return weights


def kernel_for(setup: Setup, device: torch.device) -> Kernel:
    """The attention kernel of a run: the config's, or the fastest that is installed."""
    if setup.attention == "auto":
        return best_kernel(device, torch.bfloat16 if setup.bf16 else torch.float32)
    check_kernel(setup.attention, device)
    return setup.attention
