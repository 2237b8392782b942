"""Kept sets as the kernel of the draw leaves them on the device: ids where they are few, else a bit a token.

Shapes: L draws, C ids at most, W words of 32 bits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lifecycle.batch import Kept

FEW = 512
"""Ids of a row at most; the kernel looks at so many of the nearest tokens."""


class RowSets(NamedTuple):
    """What L draws chose from. counts (L,) int64: how many tokens; 0: all; below 0: so many less, and in bits_LW, not
    in ids_LC. Both int32; ids ascend."""

    counts_L: Tensor
    ids_LC: Tensor
    bits_LW: Tensor
    vocab: int

    @classmethod
    def joined(cls, parts: Sequence[RowSets]) -> RowSets:
        """One part after the other."""
        if len(parts) == 1:
            return parts[0]
        counts, ids, bits = (torch.cat([part[i] for part in parts]) for i in range(3))  # type: ignore[misc]
        return cls(counts, ids, bits, parts[0].vocab)

    def first(self, draws: int) -> RowSets:
        """Those of the first draws."""
        return RowSets(self.counts_L[:draws], self.ids_LC[:draws], self.bits_LW[:draws], self.vocab)

    def kept(self, counts_L: Tensor) -> Kept:
        """The sets as lists. counts_L: on the host, without which the device would be waited for."""
        device, few_L = self.ids_LC.device, counts_L.clamp(min=0)
        listed_LC = torch.arange(self.ids_LC.shape[1], device=device) < self.counts_L[:, None]
        at_M, place_M = torch.nonzero_static(listed_LC, size=int(few_L.sum())).unbind(-1)
        few = Kept.of_counts(few_L, self.ids_LC[at_M, place_M])
        wide = torch.nonzero(counts_L < 0)[:, 0]
        if not len(wide):
            return few
        counts = -counts_L[wide]
        ids = torch.nonzero_static(self._mask(wide.to(device)), size=int(counts.sum()))[:, 1]
        order = torch.arange(len(counts_L), device="cpu")
        order[wide] = torch.arange(len(counts_L), len(counts_L) + len(wide), device="cpu")
        return Kept.joined([few, Kept.of_counts(counts, ids)]).take(order)

    def _mask(self, draws: Tensor) -> Tensor:
        """(M, V) bool of some draws, from their bits."""
        octets = self.bits_LW[draws].view(torch.uint8)
        places = torch.arange(8, dtype=torch.uint8, device=draws.device)
        return ((octets[:, :, None] >> places) & 1).bool().flatten(1)[:, : self.vocab]
