"""PPO's critic: generalised advantages, returns, whitening, the loss of the values and how much they explain.

    delta_t = R_t + gamma V_{t+1} - V_t          A_t = delta_t + gamma lam A_{t+1}          (V and A behind the end: 0)
    return_t = A_t + V_t, before A is whitened
    loss_t = max((V - return)^2, (clip(V, V_old - c, V_old + c) - return)^2) / 2

GAE: arXiv 1506.02438; the rest: 1707.06347 and verl. V_t stands before token t: it is read at the position whose next
token t is. Whitening is for advantages alone; of rewards it would move the optimum.

Observations (what a tool answered) are no trained tokens and are not among the N: values and advantages of the token
behind one are carried over it to the token before it, as in verl, where a masked token does the same.

Shapes: N trained tokens, the tokens of a sample together and in their order, sequence_N: int64, whose they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

WHITENING = 1e-8
"""Added to the variance that advantages are divided by, as in verl."""


class Estimates(NamedTuple):
    """(N,) each, constants: advantages, not whitened, and returns, which the values are trained to."""

    advantage_N: Tensor
    return_N: Tensor


@torch.no_grad()
def gae(reward_N: Tensor, value_N: Tensor, sequence_N: Tensor, *, gamma: float, lam: float) -> Estimates:
    """Advantages of lambda and gamma, and returns, in the dtype of the values.

    A second lambda for the critic (VAPO, 2504.05118) is a second call, whose returns are taken. log2(N) rounds, each of
    which adds up twice as many tokens: a sample's result does not depend on what is packed beside it.
    """
    ahead_N = _ahead(value_N, sequence_N, 1)
    advantage_N = reward_N.to(value_N.dtype) + gamma * ahead_N - value_N
    step = 1
    while step < len(value_N):
        advantage_N = advantage_N + (gamma * lam) ** step * _ahead(advantage_N, sequence_N, step)
        step *= 2
    return Estimates(advantage_N, advantage_N + value_N)


def moments(values_N: Tensor) -> Tensor:
    """(3,) fp64: how many, their sum and the sum of their squares. Add those of all ranks and micro-batches."""
    wide_N = values_N.detach().double()
    return torch.stack([torch.ones_like(wide_N).sum(), wide_N.sum(), wide_N.square().sum()])


def mean_and_variance(moments_3: Tensor) -> tuple[Tensor, Tensor]:
    """Scalars, fp64; the variance is the unbiased one, 0 of less than two."""
    count, total, squares = moments_3.unbind()
    mean = total / count.clamp(min=1)
    return mean, ((squares - total * mean) / (count - 1).clamp(min=1)).clamp(min=0)


def whitened(advantage_N: Tensor, moments_3: Tensor) -> Tensor:
    """(A - mean) / sqrt(variance + 1e-8). moments_3: of the advantages of the whole step, over all ranks."""
    mean, variance = mean_and_variance(moments_3)
    return ((advantage_N.detach() - mean) * (variance + WHITENING).rsqrt()).to(advantage_N.dtype)


def value_loss(value_N: Tensor, old_value_N: Tensor, return_N: Tensor, *, clip: float | None) -> tuple[Tensor, Tensor]:
    """(loss_N, clipped_N): of every token before any mean, and where the clipped value's error was the larger one.

    clip: how far a value may move from the one before the update and still gain by it; None: no bound.
    """
    return_N, old_value_N = return_N.detach(), old_value_N.detach()
    free_N = (value_N - return_N).square()
    if clip is None:
        return free_N / 2, torch.zeros_like(free_N, dtype=torch.bool)
    near_N = (torch.clamp(value_N, old_value_N - clip, old_value_N + clip) - return_N).square()
    return torch.maximum(free_N, near_N) / 2, near_N > free_N


def explained_variance(returns_3: Tensor, errors_3: Tensor) -> Tensor:
    """1 - variance of (return - value) / variance of the returns: 1 is a perfect critic, 0 one that says the mean.

    returns_3, errors_3: `moments` of the returns and of return - value, over all ranks. 0 where returns do not differ.
    """
    (_, of_returns), (_, of_errors) = mean_and_variance(returns_3), mean_and_variance(errors_3)
    share = 1 - of_errors / of_returns.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(of_returns > 0, share, torch.zeros_like(share))


def _ahead(values_N: Tensor, sequence_N: Tensor, step: int) -> Tensor:
    """(N,) the value `step` tokens further on in the same sample, 0 behind its end."""
    same_N = F.pad(sequence_N[step:] == sequence_N[:-step], (0, min(step, len(sequence_N))))
    moved_N = F.pad(values_N[step:], (0, min(step, len(values_N))))
    return torch.where(same_N, moved_N, torch.zeros_like(moved_N))
