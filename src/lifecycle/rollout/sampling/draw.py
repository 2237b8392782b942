"""The drawing of tokens, as pure functions of logits and numbers.

    logits -> penalty on seen tokens -> / temperature -> log-softmax = the untruncated log-probabilities l
    top-k, top-p and min-p are each a threshold on l: the kept set is {l >= threshold}, whatever made it
    token = the first whose cumulative kept probability passes u times their sum, in the order of ids

A threshold lies half-way between the least kept and the greatest dropped log-probability; equal ones are kept or
dropped together. The kept set is returned as a list of ids, since other weights would give another set.

On a CUDA device with Triton one kernel does all of this, without a sort (fused_draw.py). On a CPU a kept set is looked
for among the few most probable tokens, which are found by way of the greatest of each block, and rows are taken a few
at a time, so that their logits stay in the processor's cache. A row whose set is larger than those few is sorted whole,
alone: what is computed for a row follows from this row.

Shapes: R rows, V vocabulary, W candidates looked at, N blocks of the vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import Kept
from lifecycle.rollout.sampling.fused_draw import fused_draw, takes
from lifecycle.rollout.sampling.on_device import DeviceSampling, eager_on_cpu, sum_dtype
from lifecycle.rollout.sampling.row_sets import RowSets

BANNED = -1e30
"""Logit of a token that may not be drawn: finite, so that 0 times it is 0."""

TIE = 2e-5
"""Log-probabilities this near are equal: no rounding may tell them apart at the edge of a kept set."""

SMALLEST = math.exp(-80.0)
"""Probabilities up to this count as 0: numbers near the end of fp32 take a CPU a hundred times as long."""

CANDIDATES = 256
"""On a CPU a top-p or min-p looks at so many of the most probable tokens before it looks at all of them."""

TOGETHER = 1 << 18
"""Logits of the rows that are drawn at a time on a CPU (1 MB in fp32)."""

BLOCK = 64
"""Tokens of a block whose probability is summed up first."""

STRIDES = 16
"""Tokens of a block whose greatest is looked at first."""


class Drawn(NamedTuple):
    """One token for each row: ids (R,) int64, -1 where logits are no numbers; the rest (R,) in the dtype of the sums
    (fp32, fp64 for fp64 logits).

    logprobs: under the distribution drawn from; full_logprobs: under the untruncated one (same temperature and
    penalty), whose entropy in nats `entropy` is. kept: what was drawn from, as ids or, from an accelerator or compiled
    code, as bool (R, V) or, from the kernel, as both; None without truncation, or where the kernel was not asked.
    """

    ids: Tensor
    logprobs: Tensor
    full_logprobs: Tensor
    entropy: Tensor
    kept: Kept | RowSets | Tensor | None


def draw(
    logits_RV: Tensor,
    uniforms_R: Tensor,
    settings: DeviceSampling,
    *,
    seen_RV: Tensor | None = None,
    sets: bool = True,
) -> Drawn:
    """Draw one token a row. `uniforms_R` in [0, 1), fp64; `seen_RV` bool, tokens that the penalty falls on; sets: the
    kept sets are wanted."""
    if takes(logits_RV, settings):
        ids_R, facts_3R, sets_R = fused_draw(logits_RV, uniforms_R, settings, seen_RV=seen_RV, sets=sets)
        logprobs_R, full_R, entropy_R = facts_3R.unbind()
        return Drawn(ids_R, logprobs_R, full_R, entropy_R, sets_R)
    (R, V), size = logits_RV.shape, 1
    while 2 * size * V <= TOGETHER:  # a power of two: tiles of rows are cut into equal parts
        size *= 2
    if not eager_on_cpu(logits_RV) or R <= size:
        return _draw(logits_RV, uniforms_R, settings, seen_RV)
    rows = [slice(start, start + size) for start in range(0, R, size)]
    parts = [_draw(logits_RV[r], uniforms_R[r], settings, None if seen_RV is None else seen_RV[r]) for r in rows]
    kept = [part.kept for part in parts if isinstance(part.kept, Kept)]
    ids, logprobs, full, entropy = (torch.cat([part[i] for part in parts]) for i in range(4))  # type: ignore[misc]
    return Drawn(ids, logprobs, full, entropy, Kept.joined(kept) if kept else None)


def _draw(logits_RV: Tensor, uniforms_R: Tensor, settings: DeviceSampling, seen_RV: Tensor | None) -> Drawn:
    room = settings.room(logits_RV)
    y_out, p_out = (None, None) if room is None else room
    y_RV = _scaled(logits_RV, settings, seen_RV, out=y_out)
    p_RV = F.threshold(torch.softmax(y_RV, -1, out=p_out), SMALLEST, 0.0, inplace=True)
    lse_R = -p_RV.amax(-1).log()  # log-sum-exp of y, whose greatest is 0
    entropy_R = lse_R - torch.linalg.vecdot(p_RV, y_RV)
    mass_R, kept = None, None
    if settings.form.truncates:
        ids_R, mass_R, kept = _truncated(y_RV, p_RV, lse_R, uniforms_R, settings)
    else:
        ids_R, _ = _invert(p_RV, uniforms_R)
    full_R = y_RV.gather(1, ids_R[:, None])[:, 0] - lse_R
    logprobs_R = full_R if mass_R is None else (full_R - mass_R.log()).to(full_R.dtype)
    return Drawn(torch.where(entropy_R.isfinite(), ids_R, -1), logprobs_R, full_R, entropy_R, kept)


def log_probabilities(logits_RV: Tensor, settings: DeviceSampling, *, seen_RV: Tensor | None = None) -> Tensor:
    """(R, V) untruncated log-probabilities in fp32 (fp64 for fp64 logits): penalty, temperature, log-softmax."""
    return _scaled(logits_RV, settings, seen_RV).log_softmax(-1)


def _scaled(
    logits_RV: Tensor, settings: DeviceSampling, seen_RV: Tensor | None, *, out: Tensor | None = None
) -> Tensor:
    """Logits after penalty and temperature, the greatest of each row 0."""
    z_RV = logits_RV.to(sum_dtype(logits_RV))
    if seen_RV is not None and settings.form.penalised:
        penalty = settings.penalty
        z_RV = torch.where(seen_RV, torch.where(z_RV > 0, z_RV / penalty, z_RV * penalty), z_RV)
    if settings.banned is not None:
        z_RV = z_RV.index_fill(1, settings.banned, BANNED)
    return torch.sub(z_RV, z_RV.amax(-1, keepdim=True), out=out).div_(settings.temperature)


# -- kept sets


def _truncated(
    y_RV: Tensor, p_RV: Tensor, lse_R: Tensor, uniforms_R: Tensor, settings: DeviceSampling
) -> tuple[Tensor, Tensor, Kept | Tensor]:
    """Ids, probability of the kept set, and that set."""
    V = y_RV.shape[1]
    if not eager_on_cpu(y_RV):
        return _among_all(y_RV - lse_R[:, None], p_RV, uniforms_R, settings)
    width = settings.form.width or CANDIDATES
    if width >= V:
        ids_R, mass_R, kept_RV = _among_all(y_RV - lse_R[:, None], p_RV, uniforms_R, settings)
        return ids_R, mass_R, Kept.of_mask(kept_RV)
    best_RW, ids_RW = _most_probable(y_RV, width)
    l_RW = best_RW - lse_R[:, None]
    edge_R = threshold(l_RW, settings)
    short = torch.nonzero(l_RW[:, -1] >= edge_R)[:, 0].tolist()  # candidates end within the kept set
    ids_RW, order_RW = ids_RW.sort(-1)
    l_RW = l_RW.gather(1, order_RW)
    kept_RW = l_RW >= edge_R[:, None]
    # to the bit as over all tokens: those left out would add zeros to the sums
    p_RW = p_RV.gather(1, ids_RW) * kept_RW
    places_R, mass_R = _invert(p_RW, uniforms_R)
    places_R = l_RW.argmax(-1) if settings.form.greedy else places_R
    ids_R = ids_RW.gather(1, places_R[:, None])[:, 0]
    if not short:
        return ids_R, mass_R, Kept.of_counts(kept_RW.sum(-1), ids_RW[kept_RW])
    kept_RW[short] = False
    sets = [Kept.of_counts(kept_RW.sum(-1), ids_RW[kept_RW])]
    order = torch.arange(len(y_RV), device=y_RV.device)
    for row in short:
        one = slice(row, row + 1)
        ids_R[one], mass_R[one], kept_1V = _among_all(
            y_RV[one] - lse_R[one, None], p_RV[one], uniforms_R[one], settings
        )
        order[row] = len(y_RV) + len(sets) - 1
        sets.append(Kept.of_mask(kept_1V))
    return ids_R, mass_R, Kept.joined(sets).take(order)


def _among_all(
    l_RV: Tensor, p_RV: Tensor, uniforms_R: Tensor, settings: DeviceSampling
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, probability of the kept set, and that set as bool (R, V)."""
    kept_RV = l_RV >= threshold(l_RV, settings)[:, None]
    ids_R, mass_R = _invert(p_RV * kept_RV, uniforms_R)
    return (l_RV.argmax(-1) if settings.form.greedy else ids_R), mass_R, kept_RV


def threshold(l_RV: Tensor, settings: DeviceSampling) -> Tensor:
    """(R,) kept are the tokens whose untruncated log-probability is not below it; at least one is."""
    form, edges = settings.form, []
    if form.width is not None:
        k = settings.top_k.long().expand(len(l_RV), 1)
        best_RW = l_RV.topk(min(form.width, l_RV.shape[1])).values
        last_R, next_R = best_RW.gather(1, k - 1)[:, 0], best_RW.gather(1, k)[:, 0]
        if not (form.top_p or form.min_p):
            return _between(last_R, next_R)
        edges.append(last_R)
    if form.top_p:
        edges.append(_top_p_edge(l_RV, settings.top_p, edges[0] if edges else None))
    if form.min_p:
        edges.append((l_RV.amax(-1) + settings.min_p.log()).to(l_RV.dtype))
    if not edges:
        return torch.full_like(l_RV[:, 0], -torch.inf)
    kept_RV = l_RV >= torch.stack(edges).amax(0)[:, None]
    least_R = l_RV.masked_fill(~kept_RV, torch.inf).amin(-1)
    return _between(least_R, l_RV.masked_fill(kept_RV, -torch.inf).amax(-1))


def _top_p_edge(l_RV: Tensor, top_p: Tensor, floor_R: Tensor | None) -> Tensor:
    """(R,) the least log-probability of the smallest set of the most probable tokens that holds `top_p` of the mass.

    `floor_R`: the mass is that of the tokens not below it (what a top-k before it kept).
    """
    best_RV = l_RV.sort(-1, descending=True).values
    p_RV = best_RV.exp()
    mass_R1 = 1.0 if floor_R is None else (p_RV * (best_RV >= floor_R[:, None])).sum(-1, keepdim=True)
    kept_R = (p_RV.cumsum(-1, dtype=torch.float64) - p_RV < top_p * mass_R1).sum(-1).clamp(min=1)
    return best_RV.gather(1, kept_R[:, None] - 1)[:, 0]


def _between(kept_R: Tensor, dropped_R: Tensor) -> Tensor:
    """Half-way from the least kept to the greatest dropped; below both where they are equal."""
    return torch.where(kept_R - dropped_R > TIE, (kept_R + dropped_R) / 2, kept_R - 2 * TIE)


def _most_probable(y_RV: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(R, W) the greatest values and their ids, the greatest first.

    Of blocks of every N-th token, those with the `width` greatest maxima hold them: any token elsewhere has as many
    above it.
    """
    R, V = y_RV.shape
    N = V // STRIDES
    if N < 4 * width:
        best_RW, ids_RW = y_RV.topk(width)
        return best_RW, ids_RW
    blocks_RW = y_RV[:, : N * STRIDES].unflatten(1, (STRIDES, N)).amax(1).topk(width).indices
    ids = (blocks_RW[:, :, None] + N * torch.arange(STRIDES, device=y_RV.device)).flatten(1)
    ids = torch.cat(
        (ids, torch.arange(N * STRIDES, V, device=y_RV.device).expand(R, -1)), 1
    )  # what makes no whole block
    best_RW, places_RW = y_RV.gather(1, ids).topk(width)
    return best_RW, ids.gather(1, places_RW)


# -- from a uniform number to a token


def _invert(p_RV: Tensor, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
    """The token (R,) at which the cumulative probability passes u times its total (R,), in the order of ids: there a
    rounding moves the edges by as much, where in the order of probabilities it could swap two tokens.

    Sums are fp64; those of whole blocks come first.
    """
    V = p_RV.shape[1]
    if V <= 4 * BLOCK:
        sums_RV = p_RV.cumsum(-1, dtype=torch.float64)
        return _first_above(sums_RV, uniforms_R * sums_RV[:, -1]), sums_RV[:, -1]
    blocks_RNB = F.pad(p_RV, (0, -V % BLOCK)).unflatten(1, (-1, BLOCK))
    sums_RN = blocks_RNB.sum(-1, dtype=torch.float64).cumsum(-1)
    mass_R = sums_RN[:, -1]
    target_R = uniforms_R * mass_R
    at_R1 = _first_above(sums_RN, target_R)[:, None]
    before_R1 = sums_RN.gather(1, (at_R1 - 1).clamp(min=0)).masked_fill(at_R1 == 0, 0)
    block_RB = blocks_RNB.gather(1, at_R1[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    inner_RB = before_R1 + block_RB.cumsum(-1, dtype=torch.float64)
    return at_R1[:, 0] * BLOCK + _first_above(inner_RB, target_R), mass_R


def _first_above(sums_RN: Tensor, target_R: Tensor) -> Tensor:
    """(R,) the first place whose sum is above the target; the last that adds anything, where rounding leaves none."""
    last_R = (sums_RN < sums_RN[:, -1:]).sum(-1)
    return torch.minimum(torch.searchsorted(sums_RN, target_R[:, None], right=True)[:, 0], last_R)
