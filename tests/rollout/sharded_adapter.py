"""One of two processes that sample from one sharded decoder with an adapter, before and after the adapter has moved;
run by test_sharded.py.

python sharded_adapter.py RANK STORE_FILE FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.model.adapted import adapted, lora
from tests.model.sharded import TIED
from tests.two_ranks import leave
from torch.distributed.device_mesh import init_device_mesh

from lifecycle.model import Decoder, build
from lifecycle.model.adapters import add_adapter
from lifecycle.model.sharding import load_sharded, shard
from lifecycle.rollout import Engine, Sampling

WORLD = 2
PROMPTS = [[1, 2, 3, 4], [5], [6, 7, 8]]
SAMPLING = Sampling(max_new_tokens=9, temperature=0.0)
ADAPTER = lora(dropout=0.5)


def sharded(whole: Decoder) -> Decoder:
    """The same weights over both ranks, as a stage makes them, in training."""
    with torch.device("meta"):
        model = Decoder(whole.config)
    add_adapter(model, ADAPTER, seed=0)
    shard(model, init_device_mesh("cpu", (WORLD,)), param_dtype=torch.float32, reduce_dtype=torch.float32)
    model.to_empty(device=torch.device("cpu"))
    load_sharded(model, whole.state_dict() if dist.get_rank() == 0 else None)
    return model.train()


@torch.no_grad()
def move(model: Decoder) -> None:
    """What a step does to every B, on each rank's part of it."""
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            parameter.mul_(-2.0)
    model.weights_changed()


def words(engine: Engine, mine: list[int]) -> list[list[int]]:
    found = engine.generate([PROMPTS[i] for i in mine], SAMPLING, seed=0, prompt_ids=mine)
    return [found.completion(row) for row in range(len(found))]


def main(rank: int, store: str, folder: Path) -> None:
    """Rank 0 has two prompts, rank 1 one."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    whole = adapted(build(TIED, seed=1), ADAPTER)
    model = sharded(whole)
    alone, together, mine, seen = Engine(whole), Engine(model, slots=2, prefill_chunk=3), [[0, 1], [2]][rank], []
    for _ in range(2):
        seen.append(words(together, mine))
        assert seen[-1] == words(alone, mine)
        move(whole)
        move(model)
    assert seen[0] != seen[1]
    assert all(module.training for module in model.modules())
    (folder / f"done-{rank}").touch()
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
