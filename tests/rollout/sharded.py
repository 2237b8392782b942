"""One of two processes that sample from one sharded decoder, each for prompts of its own; run by test_sharded.py.

python sharded.py RANK STORE_FILE FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.model.sharded import TIED
from tests.two_ranks import leave
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from lifecycle.errors import UserError
from lifecycle.model import Decoder, build
from lifecycle.model.sharding import shard
from lifecycle.rollout import Engine, Sampling, generate

WORLD = 2
PROMPTS = [[1, 2, 3, 4], [5], [6, 7, 8], [9, 10]]
SAMPLING = Sampling(max_new_tokens=9, top_k=20, samples=2, stop_ids=(11, 12, 13, 14))


def main(rank: int, store: str, folder: Path) -> None:
    """Rank 0 has three prompts, rank 1 one, then none."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    whole = build(TIED, seed=1)
    wanted = generate(whole, PROMPTS, SAMPLING, seed=0)
    model = build(TIED, seed=1)
    shard(model, init_device_mesh("cpu", (WORLD,)), param_dtype=torch.float32, reduce_dtype=torch.float32)
    engine = Engine(model, slots=2, prefill_chunk=3)
    for mine in ([0, 1, 2], [3]) if rank == 0 else ([3], []):
        found = engine.generate([PROMPTS[i] for i in mine], SAMPLING, seed=0, prompt_ids=mine)
        for row in range(len(found)):
            at = 2 * int(found.prompt_id[row]) + int(found.sample[row])
            assert found.completion(row) == wanted.completion(at)
            assert torch.allclose(
                found.logprobs[row][found.sampled[row]], wanted.logprobs[at][wanted.sampled[at]], atol=1e-5
            )
    refuse_deterministic(model)
    train(model)
    replica = build(TIED, seed=1)
    wrapped = DistributedDataParallel(replica)
    mine = [0, 1] if rank == 0 else [2]
    found = generate(wrapped.module, [PROMPTS[i] for i in mine], SAMPLING, seed=0, prompt_ids=mine)
    assert [found.completion(row) for row in range(len(found))] == [
        wanted.completion(2 * i + sample) for i in mine for sample in range(2)
    ]
    (folder / f"done-{rank}").touch()
    leave()


def refuse_deterministic(model: Decoder) -> None:
    """Ranks with other numbers of tiles would wait for each other for ever."""
    try:
        Engine(model, deterministic=True)
    except UserError as error:
        assert "deterministic sampling over several ranks" in str(error)
    else:
        raise AssertionError("it was not refused")


def train(model: torch.nn.Module) -> None:
    """Sampling leaves a model that can be trained."""
    ids = torch.arange(12)[None]
    model(ids, ids).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
