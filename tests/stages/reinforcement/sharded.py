"""One of two processes with one sharded policy: its refreshed reference, and the experts that its sampler notes; run by
test_sharded.py.

python sharded.py RANK STORE_FILE FOLDER
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from tests.stages.reinforcement.made import POLICY, grpo, parent
from tests.stages.reinforcement.test_routing import KINDS, SAMPLING, model_of
from tests.two_ranks import leave
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from lifecycle.model import Decoder, build
from lifecycle.model.sharding import load_sharded, shard
from lifecycle.rollout import generate
from lifecycle.stages.reinforcement.learning.reference import PolicyReference

IDS, PLACES = torch.arange(6)[None], torch.arange(6)[None]


def sharded(whole: Decoder, mesh: dist.device_mesh.DeviceMesh) -> Decoder:
    model = build(whole.config, seed=9)
    shard(model, mesh, param_dtype=torch.float32, reduce_dtype=torch.float32)
    load_sharded(model, dict(whole.state_dict()) if dist.get_rank() == 0 else None)
    return model


def full(weight: Tensor) -> Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


@torch.no_grad()
def main(rank: int, store: str, folder: Path) -> None:
    """Rank 1 has no prompt of its own."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    policy = sharded(build(POLICY, seed=1), mesh)
    keys = replace(grpo().policy.kl, coefficient=0.1, refresh_every=2, refresh_mix=0.25)
    setup = replace(grpo().setup_facts, parent=parent())
    reference = PolicyReference(model=POLICY, keys=keys, head=None, setup=setup)
    assert reference.beside is not None
    reference.beside.build(mesh)
    for steps in (1, 2, 3, 4):
        with reference.network(policy) as network:  # what a forward pass gathers is a copy
            network(IDS, PLACES), policy(IDS, PLACES)
        reference.after(policy, steps)
    theirs, found = build(POLICY, seed=1).state_dict(), build(POLICY, seed=3).state_dict()
    for name, weight in reference.kept.state_dict().items():
        name = name.removeprefix("network.")
        wanted = found[name]
        for _ in range(2):
            wanted = 0.75 * wanted + 0.25 * theirs[name]
        torch.testing.assert_close(full(weight), wanted, msg=name)
    for kind in KINDS:
        whole, given = model_of(kind, seed=1), [[1, 2, 3], [4, 5]]
        want = generate(whole, given, SAMPLING, seed=1, notes_experts=True).experts
        mine = given if rank == 0 else []
        got = generate(sharded(whole, mesh), mine, SAMPLING, seed=1, notes_experts=True).experts
        assert want is not None and got is not None and got.shape[2:] == want.shape[2:] and len(got) == 6 * (rank == 0)
        assert rank == 1 or got.sort(-1).values.equal(want.sort(-1).values)
    (folder / f"done-{rank}").touch()
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
