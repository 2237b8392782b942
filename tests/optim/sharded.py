"""One of two processes that train the same network sharded (FSDP2) and whole, and compare; run by test_sharded.py.

python sharded.py RANK STORE_FILE FOLDER
"""

import copy
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from tests.two_ranks import leave
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lifecycle.optim import AdamW, Muon, clip_gradients

WORLD = 2
SPECS: dict[str, AdamW | Muon] = {
    "adamw": AdamW(lr=1e-2, embedding_lr=3e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, grad_clip=0.05),
    "muon": Muon(
        lr=2e-2,
        adamw_lr=1e-2,
        embedding_lr=None,
        weight_decay=0.1,
        momentum=0.95,
        nesterov=True,
        newton_schulz_steps=5,
        scale="match_rms_adamw",
        betas=(0.9, 0.95),
        eps=1e-8,
        grad_clip=0.05,
    ),
}


class Network(nn.Module):
    """Sizes that two ranks cannot share out evenly, and one (1 row) that leaves a rank with nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 7)
        self.down = nn.Linear(7, 6)
        self.experts = nn.ParameterList([torch.randn(3, 6, 6) / 6])  # three matrices among two ranks
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = x + torch.einsum("btd,efd->btf", x, self.experts[0])
        out: Tensor = self.head(self.norm(x + self.down(torch.tanh(self.up(x)))))
        return out


def batch(step: int) -> Tensor:
    return torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(step))


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def compare(name: str, rank: int, folder: Path) -> None:
    """Five steps of both; in the third the gradients are NaN and are dropped."""
    spec = SPECS[name]
    one, two = Network(), Network()
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(two.up, mesh=mesh)
    fully_shard(two, mesh=mesh)
    optimizers = [spec.build(one), spec.build(two)]
    for step in range(5):
        ids = batch(step)
        one(ids).square().mean().backward()
        two(ids[rank * 2 : rank * 2 + 2]).square().mean().backward()
        if step == 2:
            for model in (one, two):
                assert model.up.weight.grad is not None
                model.up.weight.grad.mul_(float("nan"))
        norms = [clip_gradients(model.parameters(), spec.grad_clip) for model in (one, two)]
        torch.testing.assert_close(norms[0], norms[1], equal_nan=True)
        for model, optimizer in zip((one, two), optimizers, strict=True):
            if step == 2:
                model.zero_grad(set_to_none=True)
            optimizer.step()
            model.zero_grad(set_to_none=True)
    for (label, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(whole(a), whole(b), rtol=1e-4, atol=1e-5, msg=partial("{}: {}".format, label))
        assert isinstance(b, DTensor)
        assert all(isinstance(v, DTensor) for k, v in optimizers[1].state[b].items() if k != "step")
    restart(name, two, optimizers[1])
    print(name, "agrees", file=(folder / f"{name}-{rank}").open("w"))


def restart(name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The state dict of a sharded optimizer, put into a fresh one, gives the same next step bit for bit."""
    again = Network()
    fully_shard(again.up, mesh=init_device_mesh("cpu", (WORLD,)))
    fully_shard(again, mesh=init_device_mesh("cpu", (WORLD,)))
    again.load_state_dict(model.state_dict())
    resumed = SPECS[name].build(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # else both would share the state itself
    for one, its in ((model, optimizer), (again, resumed)):
        one(batch(9)).square().mean().backward()
        its.step()
    assert all(torch.equal(whole(a), whole(b)) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def mixed(rank: int) -> None:
    """Plain and sharded parameters in one call: one norm over all of them."""
    sharded = Network()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (WORLD,)))
    plain = nn.Parameter(torch.zeros(3))
    plain.grad = torch.tensor([3.0, 0.0, 4.0])
    sharded(batch(0)[:2]).square().mean().backward()
    parameters = [plain, *sharded.parameters()]
    expected = torch.cat([whole(p.grad).flatten() for p in parameters if p.grad is not None]).norm()
    torch.testing.assert_close(clip_gradients(parameters, 1.0), expected)
    clipped = torch.cat([whole(p.grad).flatten() for p in parameters if p.grad is not None]).norm()
    torch.testing.assert_close(clipped, torch.tensor(1.0))


def main() -> None:
    """Join the other process, then compare."""
    rank, store, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    for name in SPECS:
        compare(name, rank, folder)
    mixed(rank)
    leave()


if __name__ == "__main__":
    main()
