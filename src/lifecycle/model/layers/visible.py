"""Attention of packed rows on a CPU that computes what is seen, and little more: exact, and forward and backward alike.

torch's kernel computes the products of a masked key like any others. In a row of many documents, or of many answers to
one prompt, most keys are masked: a query sees its document, or the prompt and its answer. So the queries are cut into
blocks, and each block is given the keys that any of its queries sees:

    plan = visible_blocks(mask_B1TT)                   # once a micro-batch
    out_BTHK = attend_by_block(q_BTHK, k_BTGK, v_BTGK, plan, scale=None)

A function of its own, not autograd over slices: that would fill a gradient of the whole row with zeros for every block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 192
"""Queries of a block: the least for which torch's kernel takes 64 at a time; it is slow with fewer."""

KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
GRADIENT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

TAKES_GROUPS = torch.__version__ >= "2.13"
"""Whether the kernel lets several query heads share a key-value head."""


@dataclass(frozen=True)
class VisibleBlock:
    """Queries that stand together, and what they see.

    rows, queries: where they stand. keys: the positions that any of them sees, in order; a slice where these are
    neighbours, which needs no copy. hidden: (rows, queries, keys) bool, true where a query does not see a key.
    """

    rows: slice
    queries: slice
    keys: slice | Tensor
    hidden: Tensor

    def of(self, x_BTGK: Tensor) -> Tensor:
        """Keys or values (rows, G, keys, K)."""
        rows_BTGK = x_BTGK[self.rows]
        seen = rows_BTGK[:, self.keys] if isinstance(self.keys, slice) else rows_BTGK.index_select(1, self.keys)
        return seen.transpose(1, 2)

    def asked(self, x_BTHK: Tensor) -> Tensor:
        """What belongs to its queries (rows, H, queries, K): a view."""
        return x_BTHK[self.rows, self.queries].transpose(1, 2)

    def add(self, sum_BTGK: Tensor, part_BGLK: Tensor) -> None:
        """The gradient of its keys or values to that of all."""
        rows_BTGK, part_BLGK = sum_BTGK[self.rows], part_BGLK.transpose(1, 2)
        if isinstance(self.keys, slice):
            rows_BTGK[:, self.keys] += part_BLGK
        else:
            rows_BTGK.index_add_(1, self.keys, part_BLGK)

    def added(self, like: Tensor) -> Tensor:
        """The mask as the kernel takes it: (rows, 1, queries, keys), 0 or -inf, added to the scores."""
        return like.new_zeros(self.hidden.shape).masked_fill_(self.hidden, float("-inf"))[:, None]


def visible_blocks(mask_B1TT: Tensor) -> list[VisibleBlock]:
    """The blocks of a mask on the CPU, bool, true where a query (row) sees a key; each query sees one at least. Rows
    that see the same stretch are one block."""
    T, blocks = mask_B1TT.shape[-1], []
    for start in range(0, T, BLOCK):
        queries = slice(start, min(start + BLOCK, T))
        mask_BQT = mask_B1TT[:, 0, queries]
        seen = [_neighbours(row.nonzero()[:, 0]) for row in mask_BQT.any(1)]
        for first, stop in _alike(seen):
            hidden = ~mask_BQT[first:stop, :, seen[first]]
            blocks.append(VisibleBlock(slice(first, stop), queries, seen[first], hidden))
    return blocks


def attend_by_block(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, blocks: Sequence[VisibleBlock], *, scale: float | None
) -> Tensor:
    """softmax(scale q k') v over what the blocks see -> (B, T, H, K), in autocast's dtype; scale None: K^(-1/2)."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        q_BTHK, k_BTGK, v_BTGK = (x.to(dtype) for x in (q_BTHK, k_BTGK, v_BTGK))
    # the kernel takes the numbers of a head for neighbours, and does not look whether they are
    q_BTHK, k_BTGK, v_BTGK = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BTHK, k_BTGK, v_BTGK))
    repeats = 1 if TAKES_GROUPS else q_BTHK.shape[2] // k_BTGK.shape[2]
    k_BTHK, v_BTHK = (x if repeats == 1 else x.repeat_interleave(repeats, dim=2) for x in (k_BTGK, v_BTGK))
    out: Tensor = _ByBlock.apply(q_BTHK, k_BTHK, v_BTHK, blocks, scale)
    return out


def _neighbours(positions: Tensor) -> slice | Tensor:
    first, last = int(positions[0]), int(positions[-1])
    return slice(first, last + 1) if last - first + 1 == len(positions) else positions


def _alike(seen: Sequence[slice | Tensor]) -> Iterator[tuple[int, int]]:
    """First and stop of neighbours that are the same slice."""
    first = 0
    for row in range(1, len(seen) + 1):
        same = row < len(seen) and isinstance(seen[row], slice) and seen[row] == seen[first]
        if not same:
            yield first, row
            first = row


class _ByBlock(torch.autograd.Function):
    """The kernel, block by block; keys and values of a block are copied again for the gradient, not kept."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[VisibleBlock], scale: float | None
    ) -> Tensor:
        out, log_sums = torch.empty_like(q), []
        for block in blocks:
            mask = block.added(q)
            part, log_sum = KERNEL(block.asked(q), block.of(k), block.of(v), attn_mask=mask, scale=scale)
            block.asked(out).copy_(part)
            log_sums.append(log_sum)
        ctx.save_for_backward(q, k, v, out, *log_sums)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *log_sums = ctx.saved_tensors
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, log_sum in zip(ctx.blocks, log_sums, strict=True):
            given = (block.asked(d_out), block.asked(q), block.of(k), block.of(v), block.asked(out), log_sum)
            parts = GRADIENT(*given, 0.0, False, attn_mask=block.added(q), scale=ctx.scale)
            block.asked(d_q).copy_(parts[0])
            block.add(d_k, parts[1])
            block.add(d_v, parts[2])
        return d_q, d_k, d_v, None, None
