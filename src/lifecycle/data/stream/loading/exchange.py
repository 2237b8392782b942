"""Collectives over plain objects: what every rank passes, on every rank."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

Told = TypeVar("Told")


def every_rank(mine: Told) -> list[Told]:
    """What each rank passes, in the order of the ranks: every rank must call."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    told: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, mine)
    return told


def gather(mine: dict[int, Told]) -> dict[int, Told]:
    """The values of all ranks' streams, by the stream's number (Lightning would save those of rank 0 alone)."""
    return {stream: known for part in every_rank(mine) for stream, known in part.items()}


def highest(value: int) -> int:
    """The highest of all ranks."""
    return max(every_rank(value))
