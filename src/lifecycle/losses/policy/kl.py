"""Distance of the policy from a reference, estimated on sampled tokens; and a coefficient that holds it at a target.

    u = l - l_ref         r = exp(l - l_old)         l: log-probability of the token now, l_old: when it was drawn

    k1          u                           mean: KL. Its gradient is 0 in the mean: for rewards, not for losses
    k2          u^2 / 2                     gradient u: on the policy's own samples, that of the KL; biased as a value
    k3          e^-u + u - 1                never below 0, mean: KL; its gradient, 1 - e^-u, is that of the KL from the
                                            reference to the policy (joschu.net/blog/kl-approx.html; GRPO, 2402.03300)
    unbiased    r (e^-u + u - 1)            with the gradient through r too, which makes it r u: unbiased in value and
                                            gradient whoever drew the tokens (DeepSeek-V3.2, 2512.02556, equation 7)

Shapes: N trained tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.losses.policy.objectives import GREATEST_LOG_RATIO

KlName = Literal["k1", "k2", "k3", "unbiased"]
"""Which estimate."""


def kl(
    logp_N: Tensor,
    reference_logp_N: Tensor,
    *,
    kind: KlName,
    old_logp_N: Tensor | None = None,
    clamp_log_ratio: float | None = None,
    clamp_value: float | None = None,
) -> Tensor:
    """(N,) of every token, in nats; the reference and `old_logp_N`, which `unbiased` wants, are constants.

    clamp_log_ratio: u stays between minus this and this (verl: 20). clamp_value: and so does the estimate (verl: 10).
    A clamped token has no gradient.
    """
    u_N = logp_N - reference_logp_N.detach()
    if clamp_log_ratio is not None:
        u_N = u_N.clamp(-clamp_log_ratio, clamp_log_ratio)
    match kind:
        case "k1":
            found_N = u_N
        case "k2":
            found_N = u_N.square() / 2
        case "k3":
            found_N = torch.expm1(-u_N) + u_N  # not exp - 1: near the reference fp32 would keep no digit of it
        case "unbiased":
            if old_logp_N is None:
                raise ValueError("kl: `unbiased` wants old_logp_N, the log-probabilities that the ratio is taken to")
            log_r_N = (logp_N - old_logp_N.detach()).clamp(-GREATEST_LOG_RATIO, GREATEST_LOG_RATIO)
            found_N = log_r_N.exp() * (torch.expm1(-u_N) + u_N)
    return found_N if clamp_value is None else found_N.clamp(-clamp_value, clamp_value)


@dataclass(frozen=True, kw_only=True)
class AdaptiveKl:
    """Holds the KL at a target (arXiv 1909.08593, section 2.2): the coefficient grows where the KL is above it.

    target: nats, measured as what `adapted` is given. horizon: in samples; the larger, the slower. The coefficient is
    all there is to remember: a number for the checkpoint.
    """

    target: float
    horizon: float

    def __post_init__(self) -> None:
        if not (self.target > 0 and self.horizon > 0):
            raise UserError(f"adaptive KL has target={self.target} and horizon={self.horizon}; wanted both above 0")

    def adapted(self, coefficient: float, measured: float, *, samples: int) -> float:
        """k (1 + clip(measured / target - 1, -0.2, 0.2) samples / horizon), at least 0.

        measured: mean KL of the step over all ranks. samples: of the step, over all ranks.
        """
        error = min(max(measured / self.target - 1, -0.2), 0.2)
        return max(coefficient * (1 + error * samples / self.horizon), 0.0)
