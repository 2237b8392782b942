"""Of a chunk of logits, on a GPU: loss, cross-entropy and penalty of each token, and the gradient in place of them.

Each row is read twice, the second time from the cache of the processor: logarithm of the sum first, then the gradient.
The formulas are those of cross_entropy.py.

Shapes: C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lifecycle.batch import IGNORED

BLOCK = 4096
"""Logits that a program holds at a time."""


@triton.jit
def tanh(x):
    """Of fp32: by the sigmoid; where that would lose the digits of a small x, by a polynomial in x x (Cephes)."""
    square = x * x
    near = square * -5.70498872745e-3 + 2.06390887954e-2
    near = near * square - 5.37397155531e-2
    near = near * square + 1.33314422036e-1
    near = near * square - 3.33332819422e-1
    return tl.where(square < 0.390625, near * square * x + x, 2.0 * tl.sigmoid(2.0 * x) - 1.0)


@triton.jit
def terms_kernel(
    logits,
    labels,
    weights,
    out,
    C,
    V,
    z_loss,
    softcap,
    IGNORED: tl.constexpr,
    DFT: tl.constexpr,
    CAPPED: tl.constexpr,
    DIFFERENTIATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token: its three terms, each (C,), into `out`."""
    row = tl.program_id(0)
    at = logits + row.to(tl.int64) * V
    label = tl.load(labels + row)
    trained = label != IGNORED
    at_label = tl.load(at + tl.where(trained, label, 0)).to(tl.float32)  # now: it is written over below
    if CAPPED:
        at_label = softcap * tanh(at_label / softcap)
    greatest = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        z = tl.load(at + i, mask=i < V, other=0.0).to(tl.float32)
        if CAPPED:
            z = softcap * tanh(z / softcap)
        z = tl.where(i < V, z, float("-inf"))
        higher = tl.maximum(greatest, z)
        total = total * tl.exp(greatest - higher) + tl.exp(z - higher)
        greatest = higher
    most = tl.max(greatest, 0)
    log_total = tl.log(tl.sum(total * tl.exp(greatest - most), 0))  # apart from `most`, beside which it has no digits
    log_sum = most + log_total
    logp = (at_label - most) - log_total
    weight = tl.where(trained, 1.0, 0.0)
    if weights is not None:
        weight *= tl.load(weights + row)
    scale = weight
    if DFT:
        scale = weight * tl.exp(logp)
    tl.store(out + row, -logp * scale)
    tl.store(out + C + row, -logp * weight)
    tl.store(out + 2 * C + row, z_loss * log_sum * log_sum * weight)
    if DIFFERENTIATE:
        factor = scale + weight * (2.0 * z_loss * log_sum)
        for start in range(0, V, BLOCK):
            i = start + tl.arange(0, BLOCK)
            z = tl.load(at + i, mask=i < V, other=0.0).to(tl.float32)
            if CAPPED:
                z = softcap * tanh(z / softcap)
            grad = tl.exp((z - most) - log_total) * factor - tl.where(i == label, scale, 0.0)
            if CAPPED:
                grad *= 1.0 - (z / softcap) * (z / softcap)
            tl.store(at + i, grad.to(logits.dtype.element_ty), mask=i < V)


def terms(
    logits_CV: Tensor,
    labels_C: Tensor,
    weights_C: Tensor | None,
    z_loss: float,
    differentiate: bool,
    dft: bool = False,
    softcap: float | None = None,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Summed loss, cross-entropy and penalty, and the logits, which hold the gradient of loss + penalty now."""
    C, V = logits_CV.shape
    out_3C = torch.empty(3, C, dtype=torch.float32, device=logits_CV.device)
    weights_C = None if weights_C is None else weights_C.float().contiguous()
    kinds = {"IGNORED": IGNORED, "DFT": dft, "CAPPED": softcap is not None, "DIFFERENTIATE": differentiate}
    given = (logits_CV, labels_C.contiguous(), weights_C, out_3C, C, V, float(z_loss), float(softcap or 1.0))
    terms_kernel[(C,)](*given, **kinds, BLOCK=BLOCK, num_warps=8)
    loss, nll, penalty = out_3C.sum(1).unbind()
    return (loss, nll, penalty), logits_CV
