"""One of two processes that train the same decoder sharded and whole, and compare; run by test_sharding.py.

python sharded.py RANK STORE_FILE FOLDER
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from tests.toy import toy
from tests.two_ranks import leave
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lifecycle.losses import linear_cross_entropy
from lifecycle.model import Decoder, DocumentMask, ModelConfig, MoE, build
from lifecycle.model.sharding import kept_whole, load_sharded, shard

WORLD, ROWS, T = 2, 4, 12
TIED = toy(
    family="qwen3",
    vocab_size=65,  # which two ranks cannot halve
    qk_norm=True,
)

SPARSE = replace(
    TIED,
    family="glm4_moe",
    moe=MoE(experts=3, active=2, ffn_width=16, shared=1, score="sigmoid", bias_rate=0.1),  # three among two ranks
)


def loss_of(model: Decoder, rows: slice, seed: int) -> Tensor:
    """Summed loss of some rows of a batch."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(65, (2, ROWS, T), generator=generator)
    documents = torch.randint(1, 3, (ROWS, T), generator=generator).sort(dim=1).values
    positions = torch.arange(T).expand(ROWS, T)
    hidden = model(ids[rows], positions[rows], DocumentMask.from_ids(documents[rows], kernel="sdpa"))
    return linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, labels[rows].flatten())[0]


def check_birth(config: ModelConfig, mesh: DeviceMesh, rank: int) -> None:
    """Made on the meta device, sharded, then filled, afresh or by rank 0: the weights of one process."""
    parent = build(config, seed=2)
    with torch.no_grad():
        for buffer in parent.buffers():
            buffer.normal_(generator=torch.Generator().manual_seed(3))
    for wanted in (build(config, seed=1).state_dict(), parent.state_dict()):
        with torch.device("meta"):
            model = Decoder(config)
        shard(model, mesh, param_dtype=torch.float32, reduce_dtype=torch.float32)
        model.to_empty(device="cpu")
        if torch.equal(wanted["embedding.weight"], parent.embedding.weight):
            load_sharded(model, wanted if rank == 0 else None)
        else:
            model.init_weights(seed=1)
        whole = {id(parameter) for parameter in kept_whole(model)}
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor) == (id(parameter) not in whole), name
            full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            assert torch.equal(full, wanted[name]), name
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, wanted[name]), name


def check_training(config: ModelConfig, mesh: DeviceMesh, rank: int, *, checkpointing: bool) -> None:
    """Three steps of two micro-batches, gradients exchanged in the last only, and a look without gradients between."""
    whole = build(config, seed=1)
    parts = build(config, seed=1, activation_checkpointing=checkpointing)
    shard(parts, mesh, param_dtype=torch.float32, reduce_dtype=torch.float32)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in (whole, parts)]
    for step in range(3):
        for micro in range(2):
            seed = 2 * step + micro
            everything = loss_of(whole, slice(0, ROWS), seed)
            (everything / 100).backward()
            mine = loss_of(parts, slice(2 * rank, 2 * rank + 2), seed)
            (mine * WORLD / 100).backward()  # ranks are averaged
            total = mine.detach().clone()
            dist.all_reduce(total)
            torch.testing.assert_close(total, everything.detach())
            check_sums(parts)
        average(parts)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            looks = [loss_of(model, slice(0, ROWS), 99) for model in (whole, parts)]
        torch.testing.assert_close(looks[0], looks[1])
    gathered = get_model_state_dict(parts, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    for name, weight in whole.state_dict().items():
        if rank == 0:
            torch.testing.assert_close(gathered[name], weight, rtol=1e-4, atol=1e-5)


def check_sums(model: Decoder) -> None:
    """Between micro-batches a rank holds its shards of the gradients, in fp32, and no whole one."""
    for module in model.modules():
        if isinstance(module, FSDPModule) and (group := module._get_fsdp_state()._fsdp_param_group):
            for parameter in group.fsdp_params:
                assert parameter.unsharded_accumulated_grad is None
                assert getattr(parameter, "_unsharded_param", None) is None or parameter._unsharded_param.grad is None
                assert isinstance(parameter.sharded_param.grad, DTensor)
                assert parameter.sharded_param.grad.dtype == torch.float32


def average(model: Decoder) -> None:
    """What `average_whole_gradients` does for a stage."""
    for parameter in kept_whole(model):
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= WORLD


def check_half(config: ModelConfig, mesh: DeviceMesh, rank: int) -> None:
    """bf16 products: near the exact loss, with gradients and weights in fp32; and the same numbers as one device, where
    autocast computes, so norms, rotary angles and routers are as exact."""
    model = build(config, seed=1)
    exact = loss_of(model, slice(0, ROWS), 0).detach()
    ids, positions = torch.arange(T)[None] % 65, torch.arange(40, 40 + T)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        alone = model(ids, positions)
    shard(model, mesh, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(ids, positions), alone)
    loss = loss_of(model, slice(2 * rank, 2 * rank + 2), 0)
    loss.backward()
    total = loss.detach().clone()
    dist.all_reduce(total)
    torch.testing.assert_close(total, exact, rtol=1e-2, atol=0.0)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name


def main() -> None:
    """Join the other process, then compare."""
    rank, store, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    for config in (TIED, replace(TIED, tied_head=False), SPARSE):
        check_birth(config, mesh, rank)
        for checkpointing in (False, True):
            check_training(config, mesh, rank, checkpointing=checkpointing)
        check_half(config, mesh, rank)
    (folder / f"done-{rank}").touch()
    leave()


if __name__ == "__main__":
    main()
