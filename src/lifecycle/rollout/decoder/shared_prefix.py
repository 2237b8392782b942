"""Samples of one prompt that decode together read the prompt's keys and values from one row of the cache.

Every row holds a copy of its prompt, so nothing has to be gathered, and the numbers are the same to the bit: the rows
after the first find what they read in the processor's nearest memory.

Shapes: B rows of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Lent:
    """Row b reads its first `lengths[b]` positions from row `lenders[b]` of the cache; both (B,) int64."""

    lenders: Tensor
    lengths: Tensor


def lent(groups: Mapping[int, list[int]], lengths: Mapping[int, int]) -> Lent | None:
    """From rows at work by their prompt, and how many positions the samples of each share; None where none do."""
    if all(len(rows) == 1 for rows in groups.values()):
        return None
    B = max(map(max, groups.values())) + 1
    lenders, shared = torch.arange(B, device="cpu"), torch.zeros(B, dtype=torch.long, device="cpu")
    for prompt, rows in groups.items():
        lenders[rows], shared[rows] = rows[0], lengths[prompt]
    return Lent(lenders=lenders, lengths=shared)
