"""The experts that each row visits, in one kernel: `moe.best_experts` and `moe.weights_of`.

Shapes: B rows, E experts in G groups of J, A experts a row visits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lifecycle.model import MoE

NOWHERE = tl.constexpr(1 << 30)
"""A number behind those of all experts."""


@triton.jit
def _first_best(worth, numbers):
    """The number of the best of a block of any shape, the lowest of equals. Where nothing is a number: `NOWHERE`."""
    return tl.min(tl.where(worth == tl.max(worth), numbers, NOWHERE))


@triton.jit
def route_kernel(
    logits, bias, chosen, chosen_stride, weights, scale, G: tl.constexpr, J: tl.constexpr, A: tl.constexpr,
    ACTIVE_GROUPS: tl.constexpr, SIGMOID: tl.constexpr, NORMALISE: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    """One row. What is not there, or may not be chosen, is worth -inf."""
    b = tl.program_id(0).to(tl.int64)
    g, j, a = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_J), tl.arange(0, BLOCK_A)
    numbers = g[:, None] * J + j[None, :]
    there = (g < G)[:, None] & (j < J)[None, :]
    scores = tl.load(logits + b * (G * J) + numbers, mask=there, other=float("-inf")).to(tl.float32)
    if SIGMOID:
        scores = tl.sigmoid(scores)
    else:
        scores = tl.exp(scores - tl.max(scores))
        scores = scores / tl.sum(scores)
    ranked = scores
    if bias is not None:
        ranked += tl.load(bias + numbers, mask=there, other=0.0).to(tl.float32)
    ranked = tl.where(there, ranked, float("-inf"))
    if ACTIVE_GROUPS < G:
        worth = tl.max(ranked, 1)
        if SIGMOID:  # its two best
            first = tl.min(tl.where(ranked == worth[:, None], numbers, NOWHERE), 1)
            worth += tl.max(tl.where(numbers == first[:, None], float("-inf"), ranked), 1)
        worth = tl.where(g < G, worth, float("-inf"))
        opened = g < 0
        for _ in tl.static_range(ACTIVE_GROUPS):
            best = _first_best(worth, g)
            opened = opened | (g == best)
            worth = tl.where(g == best, float("-inf"), worth)
        ranked = tl.where(opened[:, None], ranked, float("-inf"))
    taken = tl.zeros([BLOCK_A], tl.float32)
    for visit in tl.static_range(A):
        best = tl.minimum(_first_best(ranked, numbers), G * J - 1)  # scores that are no numbers must not lead astray
        tl.store(chosen + b * chosen_stride + visit, best.to(tl.int64))
        taken = tl.where(a == visit, tl.sum(tl.where(numbers == best, scores, 0.0)), taken)
        ranked = tl.where(numbers == best, float("-inf"), ranked)
    if NORMALISE:
        taken = taken / (tl.sum(taken, 0) + 1e-20)
    tl.store(weights + b * A + a, (taken * scale).to(weights.dtype.element_ty), mask=a < A)


def route(logits_BE: Tensor, bias_E: Tensor | None, moe: MoE, chosen_BA: Tensor, weights_BA: Tensor) -> None:
    """Fill in the experts of every row, the best first, and what their outputs are multiplied by. logits: fp32 products
    with the router. chosen: int64, its rows may lie apart."""
    grouped = moe.active_groups < moe.groups
    G = moe.groups if grouped else 1
    J = moe.experts // G
    route_kernel[(len(logits_BE),)](
        logits_BE, bias_E, chosen_BA, chosen_BA.stride(0), weights_BA, moe.scale, G=G, J=J, A=moe.active,
        ACTIVE_GROUPS=moe.active_groups if grouped else 1, SIGMOID=moe.score == "sigmoid", NORMALISE=moe.normalise,
        BLOCK_G=triton.next_power_of_2(G), BLOCK_J=triton.next_power_of_2(J),
        BLOCK_A=triton.next_power_of_2(moe.active), num_warps=1,
    )  # fmt: skip
