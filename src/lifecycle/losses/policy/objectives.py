"""What a policy maximises at every token: a function of its ratio to the policy that stood when the samples were drawn.

    r = exp(l - l_old)        l: log-probability of the token now, l_old: before the first update on this rollout

    token       min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)        PPO, arXiv 1707.06347; DAPO, 2503.14476
                and at least dual_clip A where A < 0                    1912.09729
    sequence    the same with s = exp(mean of l - l_old) of a sample    GSPO, 2507.18071
    trajectory  the same with exp(sum of l - l_old) of a sample         RLOO as TRL trains it
    cispo       sg(clip(r, 1 - clip_low, cap)) A l                      MiniMax-M1, 2506.13585
    sapo        (4 / tau) sigmoid(tau (r - 1)) A                        2511.20347
    reinforce   A l

sg: a constant to the gradient. `sequence` and `trajectory` are in their form by token, sg(s) exp(l - sg(l)) for s, as
in GSPO's equation 14 and in verl: the gradient is that of s A where the tokens of a sample have equal weights, and
where they have not, the weight or the advantage of a token stays with that token.

The dual clip is also what TRL calls `delta` (two-sided clipping, 2505.07291): both bound r from above where A < 0, and
for a bound above 1 + clip_high they are one formula. At r = 1 all kinds have the gradient A of l: which of them
is chosen matters from the second update of a rollout on.

Shapes: N trained tokens (those that the policy drew; no prompts, padding or observations), S samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.losses.policy.sums import means_of, sums_of

RatioName = Literal["token", "sequence", "trajectory", "cispo", "sapo", "reinforce"]
"""How the ratio enters."""

GREATEST_LOG_RATIO = 20.0
"""Logarithms of ratios are clamped to it, up and down, as in verl: the exponential stays finite in fp32."""


class PolicyTerm(NamedTuple):
    """value_N: to be maximised. clipped_N: bool, tokens whose gradient a bound cut. ratio_N: what was bounded."""

    value_N: Tensor
    clipped_N: Tensor
    ratio_N: Tensor


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """An objective and its bounds; None: no such bound, and what a kind has no use for is not looked at.

    clip_low, clip_high: how far below and above 1 the ratio may go (token, sequence, trajectory, cispo). dual_clip: the
    largest ratio that counts where the advantage is negative (token, sequence, trajectory). cispo has a cap: either
    1 + clip_high or `ratio_cap`, the largest ratio itself, never both. tau_positive, tau_negative: how quickly sapo's
    weight falls off, by the sign of the advantage.
    """

    kind: RatioName
    clip_low: float | None = None
    clip_high: float | None = None
    dual_clip: float | None = None
    ratio_cap: float | None = None
    tau_positive: float | None = None
    tau_negative: float | None = None

    def __post_init__(self) -> None:
        if self.clip_low is not None and not 0 < self.clip_low <= 1:
            raise UserError(f"clip_low is {self.clip_low}; wanted above 0 and at most 1, or null: no bound below")
        if self.clip_high is not None and not 0 < self.clip_high < math.inf:
            raise UserError(f"clip_high is {self.clip_high}; wanted above 0: the ratio goes to 1 + clip_high")
        if self.dual_clip is not None and not self.dual_clip > 1 + (self.clip_high or 0):
            raise UserError(
                f"dual_clip is {self.dual_clip}; wanted a ratio above 1 + clip_high, 3 for example, or null: no bound"
            )
        if self.kind == "cispo":
            self._check_cispo()
        if self.kind == "sapo" and not all(tau and tau > 0 for tau in (self.tau_positive, self.tau_negative)):
            raise UserError(
                f"sapo has tau_positive={self.tau_positive} and tau_negative={self.tau_negative}; wanted both above 0 "
                "(its paper: 1.0 and 1.05)"
            )

    def _check_cispo(self) -> None:
        if (self.clip_high is None) == (self.ratio_cap is None):
            raise UserError(
                f"cispo has clip_high={self.clip_high} and ratio_cap={self.ratio_cap}; wanted one of them, and null "
                "for the other: ratios count to 1 + clip_high, or to ratio_cap itself (ScaleRL: 5)"
            )
        if self.ratio_cap is not None and not self.ratio_cap > 1:
            raise UserError(
                f"ratio_cap is {self.ratio_cap}; wanted above 1: it is the largest ratio, not its distance from 1, "
                "and below 1 every token would count less than it should"
            )


def objective(
    ratio: Ratio, logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor, sequence_N: Tensor, *, sequences: int
) -> PolicyTerm:
    """Of every token. Advantages and old log-probabilities are constants to the gradient.

    advantage_N: of the token's sample, or of the token itself (PPO). sequence_N: int64, which of the S samples a token
    belongs to; `sequence` and `trajectory` want all tokens of a sample in one call. sequences: S.
    """
    old_logp_N, advantage_N = old_logp_N.detach(), advantage_N.detach()
    log_ratio_N = logp_N - old_logp_N
    if ratio.kind in ("sequence", "trajectory"):
        joined = means_of if ratio.kind == "sequence" else sums_of
        log_s_N = joined(log_ratio_N.detach(), sequence_N, sequences)[sequence_N]
        log_ratio_N = logp_N - logp_N.detach() + log_s_N
    ratio_N = log_ratio_N.clamp(-GREATEST_LOG_RATIO, GREATEST_LOG_RATIO).exp()
    match ratio.kind:
        case "token" | "sequence" | "trajectory":
            value_N, clipped_N = _clipped(ratio, ratio_N, advantage_N)
        case "cispo":
            most = 1 + _or(ratio.clip_high, math.inf) if ratio.ratio_cap is None else ratio.ratio_cap
            bounded_N = ratio_N.detach().clamp(1 - _or(ratio.clip_low, math.inf), most)
            value_N, clipped_N = bounded_N * advantage_N * logp_N, bounded_N != ratio_N.detach()
        case "sapo":
            value_N, clipped_N = _soft(ratio, ratio_N, advantage_N), torch.zeros_like(logp_N, dtype=torch.bool)
        case "reinforce":
            value_N, clipped_N = advantage_N * logp_N, torch.zeros_like(logp_N, dtype=torch.bool)
    return PolicyTerm(value_N, clipped_N, ratio_N.detach())


def token_objective(
    policy_N: Tensor,
    *,
    weight_N: Tensor | None,
    kl_N: Tensor | None,
    kl_coefficient: float,
    entropy_N: Tensor | None,
    entropy_coefficient: float,
) -> Tensor:
    """(N,) weight * policy - kl_coefficient * KL + entropy_coefficient * H, to be maximised.

    weight_N: product of the masks of `masks.py`, which multiply the policy's term alone (DeepSeek-V3.2, equation 9).
    entropy_N: of the next-token distribution, with its gradient. None: no such term.
    """
    total_N = policy_N if weight_N is None else policy_N * weight_N.detach()
    if kl_N is not None:
        total_N = total_N - kl_coefficient * kl_N
    return total_N if entropy_N is None else total_N + entropy_coefficient * entropy_N


def teacher_advantage(teacher_logp_N: Tensor, sampler_logp_N: Tensor) -> Tensor:
    """(N,) how much likelier a token is to the teacher than to who drew it, in nats; a constant.

    The policy gradient of `importance_sampling` with it is, in the mean over samples, the gradient of the reverse
    divergence KL(p || q) at each token, the context given (discount 0).
    """
    return (teacher_logp_N - sampler_logp_N).detach()


def importance_sampling(logp_N: Tensor, sampler_logp_N: Tensor, advantage_N: Tensor) -> Tensor:
    """- sum of r A over the tokens, with r the ratio to who drew them, without bounds: scalar."""
    places_N = torch.zeros_like(logp_N, dtype=torch.int64)
    return -objective(Ratio(kind="token"), logp_N, sampler_logp_N, advantage_N, places_N, sequences=1).value_N.sum()


def _clipped(ratio: Ratio, ratio_N: Tensor, advantage_N: Tensor) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r) A), not below dual_clip A: a bound above for A > 0; one below, and the dual one, for A < 0."""
    least, most = 1 - _or(ratio.clip_low, math.inf), 1 + _or(ratio.clip_high, math.inf)
    up_N, down_N = ratio_N.clamp(max=most), ratio_N.clamp(least, _or(ratio.dual_clip, math.inf))
    bounded_N = torch.where(advantage_N > 0, up_N, down_N)
    return bounded_N * advantage_N, (bounded_N != ratio_N) & (advantage_N != 0)


def _soft(ratio: Ratio, ratio_N: Tensor, advantage_N: Tensor) -> Tensor:
    """Of sapo: a slope of A at r = 1 that falls off on both sides."""
    up_N = torch.full_like(advantage_N, _or(ratio.tau_positive, 1.0))
    tau_N = torch.where(advantage_N > 0, up_N, torch.full_like(advantage_N, _or(ratio.tau_negative, 1.0)))
    return 4 / tau_N * torch.sigmoid(tau_N * (ratio_N - 1)) * advantage_N


def _or(value: float | None, without: float) -> float:
    return without if value is None else value
