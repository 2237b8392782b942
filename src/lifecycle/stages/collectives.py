"""What the ranks of a step tell each other: trained tokens, gradients, faults and wishes to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from lifecycle.batch import TokenBatch
from lifecycle.model.sharding import kept_whole


def many_ranks() -> bool:
    """Whether there is another rank to talk to."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values` added up over all ranks, in place: every rank must call."""
    if many_ranks():
        torch.distributed.all_reduce(values)
    return values


def count_tokens(micro: Sequence[TokenBatch], sources: int, device: torch.device) -> Tensor:
    """(1 + sources,) float64 over all ranks: trained tokens of a step in all, and by source."""
    counts = torch.zeros(1 + sources, dtype=torch.float64, device="cpu")
    for batch in micro:
        counts[1:] += torch.bincount(batch.source_ids[batch.trained], minlength=sources)
    counts[0] = counts[1:].sum()
    return sum_over_ranks(counts.to(device))


def any_rank(bad: Tensor, stop: bool) -> tuple[bool, bool]:
    """Whether a scalar flag is true, and a stop is asked for, on any rank: one exchange, one look at the device."""
    flags = torch.stack([bad, torch.tensor(stop, device=bad.device)]).float()
    if many_ranks():
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    first, second = flags.tolist()
    return bool(first), bool(second)


@contextlib.contextmanager
def synchronised(trainer: pl.Trainer, *, last: bool) -> Iterator[None]:
    """Gradients are exchanged between ranks in the last micro-batch's backward pass only.

    Sharded ones in each: every rank would hold the whole sum in fp32 from one micro-batch to the next.
    """
    if last or trainer.world_size == 1 or isinstance(trainer.strategy, ModelParallelStrategy):
        yield
    else:
        with trainer.strategy.model.no_sync():  # type: ignore[union-attr,operator]
            yield


def average_whole_gradients(trainer: pl.Trainer, model: nn.Module) -> None:
    """Average over the ranks the gradients of what a sharded model keeps whole on each: one exchange a step."""
    if not isinstance(trainer.strategy, ModelParallelStrategy) or not many_ranks():
        return
    parameters = [parameter for parameter in kept_whole(model) if parameter.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    mean = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients])) / trainer.world_size
    for parameter, part in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
