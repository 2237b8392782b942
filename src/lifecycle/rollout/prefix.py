"""Attention of samples of one prompt: the prompt's keys and values are read once for all of them.

The samples that decode together see the same keys in the first positions. Their queries meet these in one product, and
their own positions row by row; one softmax runs over both parts side by side (the decomposition of Hydragen, arXiv
2402.05099, section 3.1, with the scores joined instead of the results, so that nothing is rescaled).

    scores = [q prefix' | q own'] / sqrt(K) + mask,    weights = softmax(scores),    out = weights [prefix | own]

Shapes: B rows of a step, P prompts, M most samples of one at work, H query heads, G key-value heads, r = H / G, K width
of a head, n positions of the prefix, L positions looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lifecycle.model import Cache

LEAST_SAVED = 512
"""Positions that are not read again, over all rows, from which on sharing pays for its gathering."""

Group = list[int]
"""Rows with samples of one prompt."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The first `length` positions of every group of rows, and who stands where.

    keys, values: by layer, (P G, n, K). queries: (P G M) of the B G of a step, by group, filled up to M members;
    places: (B G) where they stand among those.
    """

    length: int
    keys: list[Tensor]
    values: list[Tensor]
    queries: Tensor
    places: Tensor

    def by_group(self, x: Tensor) -> Tensor:
        """(B G, r, X) -> (P G, M r, X)."""
        return x.index_select(0, self.queries).view(len(self.keys[0]), -1, x.shape[-1])

    def by_row(self, x: Tensor) -> Tensor:
        """(P G, M r, X) -> (B G, r, X)."""
        return x.view(len(self.queries), -1, x.shape[-1]).index_select(0, self.places)


def shared_length(groups: Sequence[Group], lengths: Sequence[int]) -> int:
    """Positions that the rows of every group share, of `lengths` a group; 0 where sharing would not pay."""
    shared = min(lengths, default=0)
    return shared if (sum(map(len, groups)) - len(groups)) * shared >= LEAST_SAVED else 0


def prefix_of(groups: Sequence[Group], length: int, cache: Cache, last: Prefix | None) -> Prefix:
    """Of rows at the front of a cache.

    `last`: a prefix of the same prompts in the same order and of the same length, whose copies stay.
    """
    if last is None:
        first = torch.tensor([group[0] for group in groups], device=cache.keys[0].device)
        keys, values = ([x[first, :, :length].flatten(0, 1) for x in part] for part in (cache.keys, cache.values))
    else:
        keys, values = last.keys, last.values
    queries, places = places_of(groups, cache.keys[0].shape[1])
    return Prefix(length=length, keys=keys, values=values, queries=queries, places=places)


def places_of(groups: Sequence[Group], kv_heads: int) -> tuple[Tensor, Tensor]:
    """`queries` and `places` of a `Prefix`. Rows at rest belong to no group: their places are 0, and mean nothing."""
    B, M = max(map(max, groups)) + 1, max(map(len, groups))
    rows_PM = torch.tensor([group + group[:1] * (M - len(group)) for group in groups])
    queries_PGM = torch.arange(B * kv_heads).view(B, kv_heads)[rows_PM].transpose(1, 2)
    among_PMG = torch.arange(queries_PGM.numel()).view(queries_PGM.shape).transpose(1, 2)
    places_BG = torch.zeros(B, kv_heads, dtype=torch.long)
    for p, group in enumerate(groups):
        places_BG[group] = among_PMG[p, : len(group)]
    return queries_PGM.flatten(), places_BG.flatten()


def attend(q_BHK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, added_B1L: Tensor, prefix: Prefix, layer: int) -> Tensor:
    """softmax(q k' / sqrt(K) + added) v -> (B, H, K), as `cached_attention` for one query a row."""
    (B, H, K), (_, G, L, _), n = q_BHK.shape, k_BGLK.shape, prefix.length
    own_k, own_v = k_BGLK[:, :, n:].flatten(0, 1), v_BGLK[:, :, n:].flatten(0, 1)
    q = q_BHK.reshape(B * G, H // G, K)
    of_prefix = prefix.by_row(torch.bmm(prefix.by_group(q), prefix.keys[layer].transpose(1, 2)))
    scores = torch.cat((of_prefix, torch.bmm(q, own_k.transpose(1, 2))), dim=-1).view(B, H, L)
    weights = torch.add(added_B1L, scores, alpha=K**-0.5).softmax(-1).view(B * G, H // G, L)
    seen = prefix.by_row(torch.bmm(prefix.by_group(weights[..., :n]), prefix.values[layer]))
    return torch.baddbmm(seen, weights[..., n:], own_v).view(B, H, K)
