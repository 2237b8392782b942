"""Collectives of a step: sums over ranks, counts of trained tokens, and whether any rank has a bad step or must
stop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lifecycle.batch import MicroBatch


def many_ranks() -> bool:
    """Whether the run has more than one rank."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values` added up over all ranks, in place: every rank must call."""
    if many_ranks():
        torch.distributed.all_reduce(values)
    return values


def gather_values(values: Tensor) -> Tensor:
    """The values (n, ...) of all ranks, one rank after the other; n may differ. Every rank must call."""
    if not many_ranks():
        return values
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    counts = values.new_zeros(world, dtype=torch.int64)
    counts[rank] = len(values)
    ends = sum_over_ranks(counts).cumsum(0).tolist()
    whole = values.new_zeros(ends[-1], *values.shape[1:])
    whole[ends[rank] - len(values) : ends[rank]] = values
    return sum_over_ranks(whole)


def count_tokens(micro: Sequence[MicroBatch], sources: int, device: torch.device) -> Tensor:
    """(2 + sources,) float64 over all ranks: what the summed loss of a step is divided by (trained tokens by their
    weights, pairs, sequences), the step's trained tokens by source, and the tokens that the model reads, trained or
    not, without padding."""
    counts = torch.zeros(2 + sources, dtype=torch.float64, device="cpu")
    for batch in micro:
        counts[0] += batch.weight_by_source(sources).sum()
        counts[1:-1] += batch.tokens_by_source(sources)
        if batch.packed is not None:
            counts[-1] += (batch.packed.document_ids > 0).sum()
    return sum_over_ranks(counts.to(device))


def highest_of_ranks(values: Sequence[int], device: torch.device) -> list[int]:
    """The highest of each number on any rank: every rank must call."""
    if not many_ranks():
        return list(values)
    highest = torch.tensor(list(values), device=device)
    torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
    return [int(value) for value in highest]


def greatest_of_ranks(value: Tensor) -> Tensor:
    """The greatest of all ranks, in place: every rank must call."""
    if many_ranks():
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return value


def any_rank(bad: Tensor, stop: bool) -> tuple[bool, bool]:
    """(bad, stop): whether each is true on any rank. One all-reduce and one synchronisation with the device."""
    flags = torch.stack([bad, torch.tensor(stop, device=bad.device)]).float()
    if many_ranks():
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    first, second = flags.tolist()
    return bool(first), bool(second)
