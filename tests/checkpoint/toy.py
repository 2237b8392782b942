"""A small training run in its own processes: toy.py FOLDER STRATEGY RANKS STEPS KEEP_LAST KILL_AFTER (0: not killed).

Saves every second step, goes on from the last good checkpoint, prints "loss STEP HEX" for every step on rank 0.
"""

import errno
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from lifecycle.callbacks.saving import periodic
from lifecycle.checkpoint import last_good
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.checkpoint.protocol import HashingFile
from lifecycle.checkpoint.sharded import ShardedStrategy, wait_for_saves


def disk_full(self: HashingFile, data: object) -> int:
    """Stands in for a write once the disk of the last rank has no room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Toy(pl.LightningModule):
    """Two layers, AdamW, manual optimization; the batch of a step follows from its number."""

    def __init__(self, kill_after: int) -> None:
        super().__init__()
        self.full_after = int(os.environ.get("TOY_FULL", 0))
        self.automatic_optimization = False
        self.kill_after = kill_after
        self.model: nn.Sequential | None = None

    def configure_model(self) -> None:
        if self.model is not None:
            return
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 3, bias=False))
        if isinstance(self.trainer.strategy, ShardedStrategy):
            assert self.device_mesh is not None
            for layer in (model[0], model[2], model):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        self.model = model

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        step, world = self.trainer.global_step, self.trainer.world_size
        if step == self.full_after - 1:
            wait_for_saves(self.trainer.strategy)
            if self.global_rank == world - 1:
                HashingFile.write = disk_full  # type: ignore[method-assign]
        assert self.model is not None
        x = torch.randn(8, 7, generator=torch.Generator().manual_seed(step)).chunk(world)[self.global_rank]
        loss = self.model(x).sub(x[:, :3]).square().mean()
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        shown = loss.detach().clone()
        if world > 1:
            torch.distributed.all_reduce(shown)
        if self.global_rank == 0:
            print("loss", step + 1, (shown.item() / world).hex(), flush=True)

    def on_train_batch_end(self, *args: Any) -> None:
        if self.kill_after and self.trainer.global_step == self.kill_after:
            wait_for_saves(self.trainer.strategy)
            self.trainer.strategy.barrier()
            if self.global_rank == 0:
                os.killpg(0, signal.SIGKILL)
            signal.pause()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["stage"] = {"meter": {"tokens": float(self.trainer.global_step * 8)}}


def main(folder: Path, strategy: str, ranks: int, steps: int, keep_last: int, kill_after: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen: dict[str, Strategy | str] = {"single": "auto"}
    if strategy == "ddp":
        chosen["ddp"] = DDPStrategy(process_group_backend="gloo")
    if strategy == "sharded":
        chosen["sharded"] = ShardedStrategy(
            data_parallel_size=ranks, tensor_parallel_size=1, process_group_backend="gloo"
        )
    good = None  # every rank looks by itself; rank 0's answer is the one that is broadcast on load
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        good = last_good(folder, warn=lambda line: print("damaged", line, flush=True))
        os.environ["TOY_START"] = str(good or "")
    start = os.environ["TOY_START"] or None
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=chosen[strategy],
        max_steps=steps,
        max_epochs=-1,
        callbacks=[periodic(folder, 2)],
        plugins=[CommittedCheckpointIO(keep_last=keep_last)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data: Any = DataLoader(torch.zeros(1000, 1))  # type: ignore[arg-type]
    trainer.fit(Toy(kill_after), data, ckpt_path=start)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *(int(word) for word in sys.argv[3:]))
