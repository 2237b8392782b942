"""What counts less, or not at all, because it was drawn by another policy than the one that is trained.

    rho = exp(l_old - l_mu)     l_mu: log-probability of the token under what drew it, the sampler
    r   = exp(l - l_old)        l_old: under the trainer's weights before the first update on this rollout, l: now

    truncated    clip(rho, least, most)                                     "TIS": verl, open-instruct, TRL
    masked       rho where least <= rho <= most, else 0                     IcePop, arXiv 2510.18855; TRL's token_mask
    geometric    0 where exp(mean of log rho of the sample) is outside      verl
    dppo         0 where A > 0 and p - p_mu > threshold,                    2602.04879
                 or A < 0 and p - p_mu < -threshold
    off_policy   0 where A < 0 and mean of l_mu - l of the sample is        DeepSeek-V3.2, 2512.02556, equation 9
                 above a threshold

The last three are 1 elsewhere. All are constants that multiply the policy's term, not the KL and not the entropy.
`geometric` and `off_policy` want all tokens of a sample in one call. `off_policy` and `dppo` look at the policy as it
is now, the others at the one before the first update. With one engine for sampling and training rho is 1 up to
rounding; at one update a rollout r is 1 too, and then nothing here can fire. Log rho as it is before a bound cuts it
(`ratio_facts`), and the share that was cut.

Shapes: N trained tokens, S samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.losses.policy.objectives import GREATEST_LOG_RATIO
from lifecycle.losses.policy.sums import means_of

Bounds = tuple[float, float]
"""Least and most."""


class Mask(NamedTuple):
    """weight_N: what the policy's term of a token is multiplied by. cut_N: bool, where that is not what it would be."""

    weight_N: Tensor
    cut_N: Tensor


class RatioFacts(NamedTuple):
    """Of ratios to the sampler, before any bound: scalars, fp64. Over micro-batches and ranks add `tokens`, `total` and
    `squares`, and take the maximum of `largest` (`joined`)."""

    tokens: Tensor
    total: Tensor
    squares: Tensor
    largest: Tensor

    def joined(self, other: RatioFacts) -> RatioFacts:
        """Of both."""
        return RatioFacts(
            self.tokens + other.tokens,
            self.total + other.total,
            self.squares + other.squares,
            torch.maximum(self.largest, other.largest),
        )

    @property
    def mean(self) -> Tensor:
        """1 where sampler and trainer agree; 0 of no tokens."""
        return self.total / self.tokens.clamp(min=1)

    @property
    def effective_share(self) -> Tensor:
        """Effective sample size over the number of tokens: (sum of rho)^2 / (N sum of rho^2); 1 where all are equal."""
        return self.total.square() / (self.tokens * self.squares).clamp(min=torch.finfo(torch.float64).tiny)


def ratio_facts(old_logp_N: Tensor, sampler_logp_N: Tensor) -> RatioFacts:
    """Mean, effective sample size and maximum of rho, as sums that can be joined."""
    rho_N = _ratios(old_logp_N, sampler_logp_N).double()
    largest = torch.cat([rho_N.new_zeros(1), rho_N]).amax()
    return RatioFacts(rho_N.new_full((), len(rho_N)), rho_N.sum(), rho_N.square().sum(), largest)


def truncated(old_logp_N: Tensor, sampler_logp_N: Tensor, *, between: Bounds) -> Mask:
    """Truncated importance sampling of tokens: bias for less variance."""
    rho_N = _ratios(old_logp_N, sampler_logp_N)
    weight_N = rho_N.clamp(*between)
    return Mask(weight_N, weight_N != rho_N)


def masked(old_logp_N: Tensor, sampler_logp_N: Tensor, *, between: Bounds) -> Mask:
    """Importance sampling of tokens that drops those whose ratio is outside."""
    rho_N = _ratios(old_logp_N, sampler_logp_N)
    cut_N = (rho_N < between[0]) | (rho_N > between[1])
    return Mask(rho_N.masked_fill(cut_N, 0), cut_N)


def geometric(
    old_logp_N: Tensor, sampler_logp_N: Tensor, sequence_N: Tensor, *, sequences: int, between: Bounds
) -> Mask:
    """Drops samples whose geometric mean of ratios is outside: unlike their product it does not grow with length."""
    log_rho_S = means_of((old_logp_N - sampler_logp_N).detach(), sequence_N, sequences)
    mean_S = log_rho_S.exp()
    cut_N = ((mean_S < between[0]) | (mean_S > between[1]))[sequence_N]
    return Mask((~cut_N).to(log_rho_S.dtype), cut_N)


def dppo(logp_N: Tensor, sampler_logp_N: Tensor, advantage_N: Tensor, *, threshold: float) -> Mask:
    """Drops tokens whose probability has moved further than the threshold to where the advantage pushes it."""
    moved_N = logp_N.detach().exp() - sampler_logp_N.detach().exp()
    cut_N = ((advantage_N > 0) & (moved_N > threshold)) | ((advantage_N < 0) & (moved_N < -threshold))
    return Mask((~cut_N).to(moved_N.dtype), cut_N)


def off_policy(
    logp_N: Tensor, sampler_logp_N: Tensor, advantage_N: Tensor, sequence_N: Tensor, *, sequences: int, threshold: float
) -> Mask:
    """Drops samples that were worse than expected and have become unlikely: what they push away is gone already."""
    gone_S = means_of((sampler_logp_N - logp_N).detach(), sequence_N, sequences)
    cut_N = (advantage_N < 0) & (gone_S > threshold)[sequence_N]
    return Mask((~cut_N).to(gone_S.dtype), cut_N)


@dataclass(frozen=True, kw_only=True)
class SamplerMasks:
    """Which masks act, each off at None; their weights are multiplied.

    truncate_between, keep_between: least and most rho of `truncated` and of `masked`; one of them at most.
    geometric_between: of `geometric`. dppo_threshold: in probability. off_policy_threshold: nats a token.
    """

    truncate_between: Bounds | None = None
    keep_between: Bounds | None = None
    geometric_between: Bounds | None = None
    dppo_threshold: float | None = None
    off_policy_threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("truncate_between", "keep_between", "geometric_between"):
            bounds = getattr(self, name)
            if bounds is not None and not 0 <= bounds[0] <= 1 <= bounds[1]:
                raise UserError(f"{name} is {list(bounds)}; wanted ratios around 1: [least, most], least <= 1 <= most")
        if self.truncate_between and self.keep_between:
            raise UserError(
                "truncate_between and keep_between both weigh tokens by their ratio, which would count twice; set one "
                "of them to null"
            )
        for name in ("dppo_threshold", "off_policy_threshold"):
            threshold = getattr(self, name)
            if threshold is not None and not 0 <= threshold < math.inf:
                raise UserError(f"{name} is {threshold}; wanted 0 or above, or null: no such mask")

    def of(
        self,
        *,
        logp_N: Tensor,
        old_logp_N: Tensor,
        sampler_logp_N: Tensor,
        advantage_N: Tensor,
        sequence_N: Tensor,
        sequences: int,
    ) -> dict[str, Mask]:
        """By name, of those that are on. The product of their weights goes to `token_objective`."""
        found = {}
        if self.truncate_between is not None:
            found["truncated"] = truncated(old_logp_N, sampler_logp_N, between=self.truncate_between)
        if self.keep_between is not None:
            found["masked"] = masked(old_logp_N, sampler_logp_N, between=self.keep_between)
        if self.geometric_between is not None:
            found["geometric"] = geometric(
                old_logp_N, sampler_logp_N, sequence_N, sequences=sequences, between=self.geometric_between
            )
        if self.dppo_threshold is not None:
            found["dppo"] = dppo(logp_N, sampler_logp_N, advantage_N, threshold=self.dppo_threshold)
        if self.off_policy_threshold is not None:
            found["off_policy"] = off_policy(
                logp_N,
                sampler_logp_N,
                advantage_N,
                sequence_N,
                sequences=sequences,
                threshold=self.off_policy_threshold,
            )
        return found


def product(masks: dict[str, Mask]) -> Tensor | None:
    """(N,) of their weights; None of none."""
    weights = [mask.weight_N for mask in masks.values()]
    return torch.stack(weights).prod(0) if weights else None


def _ratios(old_logp_N: Tensor, sampler_logp_N: Tensor) -> Tensor:
    log_rho_N = (old_logp_N - sampler_logp_N).detach()
    return log_rho_N.clamp(-GREATEST_LOG_RATIO, GREATEST_LOG_RATIO).exp()
