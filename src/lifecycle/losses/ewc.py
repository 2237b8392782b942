"""Elastic weight consolidation: a quadratic penalty on moving away from the parent's weights, by Fisher information.

    penalty = strength / 2 * sum_i F_i (w_i - a_i)^2                          (arXiv 1612.00796, eq. 3)
    F_i = mean over sequences of (d log p(sequence) / d w_i)^2, at the parent's weights a

F is the diagonal of the empirical Fisher information: gradients of the data's own next tokens. Per-parameter tensors
may be shards: every sum here is local, and `penalty` is this rank's part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Sequence_ = TypeVar("Sequence_")


def diagonal_fisher(
    parameters: Sequence[Tensor], sequences: Iterable[Sequence_], log_likelihood: Callable[[Sequence_], Tensor]
) -> list[Tensor]:
    """The diagonal of the empirical Fisher information: the mean over sequences of the squared gradient of
    `log_likelihood(sequence)`, a scalar summed over the sequence's tokens. One tensor a parameter, of its shape.

    One backward pass a sequence, since the square of a sum is not the sum of squares. `parameter.grad` stays empty.
    """
    fisher = [torch.zeros_like(parameter) for parameter in parameters]
    count = 0
    for sequence in sequences:
        grads = torch.autograd.grad(log_likelihood(sequence), parameters, allow_unused=True)
        count += 1
        for total, grad in zip(fisher, grads, strict=True):
            if grad is not None:
                total.addcmul_(grad, grad)
    return [total / max(count, 1) for total in fisher]


@torch.no_grad()
def add_ewc_gradients(
    parameters: Sequence[Tensor], anchors: Sequence[Tensor], fisher: Sequence[Tensor], *, strength: float
) -> Tensor:
    """Add the gradient of the EWC penalty, strength F (w - a), to `parameter.grad`; returns the penalty, a scalar fp32.

    parameters, anchors (the parent's weights a) and fisher (F): one tensor a parameter, of equal shapes. Call it once
    a step, whatever the number of micro-batches: the penalty is no sum over tokens.
    """
    penalty = torch.zeros((), dtype=torch.float32, device=parameters[0].device)
    for parameter, anchor, information in zip(parameters, anchors, fisher, strict=True):
        moved = parameter - anchor
        gradient = information * moved
        penalty += 0.5 * strength * (gradient * moved).sum()
        parameter.grad = (
            strength * gradient if parameter.grad is None else parameter.grad.add_(gradient, alpha=strength)
        )
    return penalty
