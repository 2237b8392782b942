"""The shared prefix: samples of a prompt that decode together read its keys and values from one row of the cache.

Every row holds a copy of its prompt, so nothing has to be gathered, and the numbers are the same to the bit: the rows
after the first find them in the processor's nearest cache.

Shapes: B rows of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SharedPrefix:
    """Row b reads its first `lengths[b]` positions from row `rows[b]` of the cache; both (B,) int64 on the CPU."""

    rows: Tensor
    lengths: Tensor


def shared_prefix(groups: Mapping[int, list[int]], lengths: Mapping[int, int]) -> SharedPrefix | None:
    """The shared prefixes of the next steps; None where no two sequences have the same prompt.

    groups: prompt -> the rows that decode its samples. lengths: prompt -> how many positions these rows share.
    """
    if all(len(rows) == 1 for rows in groups.values()):
        return None
    B = max(map(max, groups.values())) + 1
    source, shared = torch.arange(B, device="cpu"), torch.zeros(B, dtype=torch.long, device="cpu")
    for prompt, rows in groups.items():
        source[rows], shared[rows] = rows[0], lengths[prompt]
    return SharedPrefix(rows=source, lengths=shared)
