"""Collectives over plain objects: what every rank passes, on every rank."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

Value = TypeVar("Value")


def every_rank(mine: Value) -> list[Value]:
    """What each rank passes, in the order of the ranks: every rank must call."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, mine)
    return values


def gather(mine: dict[int, Value]) -> dict[int, Value]:
    """The values of all ranks' streams, by the stream's number (Lightning would save those of rank 0 alone)."""
    return {stream: known for part in every_rank(mine) for stream, known in part.items()}


def highest(value: int) -> int:
    """The largest value of all ranks: every rank must call."""
    return max(every_rank(value))
