"""Single-stream policy optimisation (arXiv 2509.13232): a tracker for each prompt in place of a group of samples.

    v = alpha / (alpha + beta)                        expected reward of a prompt, rewards from 0 to 1
    A = R - v, then `advantages(kind="batch")`        v as it was before this sample
    rho = 2^(-D / D_half), from .875 to .96           how much of the past is kept, D: how far the policy has moved
    alpha <- rho alpha + R                            beta <- rho beta + 1 - R
    weight of a prompt = sqrt(v (1 - v)) + .05        for the choice of prompts, without replacement

At rest alpha + beta is 1 / (1 - rho): 8 to 25 visits count. Two variants, where the paper (version 2) and the recipe
that its authors published differ:

               start from k successes (sum of rewards) in n samples        D
    paper      v = k / n                                                   KL(policy now, policy at the last visit)
    recipe     v = (k + 1/2) / (n + 1)                                     mean of |l now - l then|

Both D are estimated on the tokens of the prompt's last answer; alpha + beta starts at N0 = 1 / (1 - .875) = 8. A prompt
without samples starts with alpha = beta = 1/2. The paper updates the tracker before the policy, the recipe after it.

Shapes: P prompts, N tokens of their last answers. Trackers are fp64 and on the CPU: state for the checkpoint.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.losses.policy.objectives import GREATEST_LOG_RATIO
from lifecycle.losses.policy.sums import means_of

SpoVariant = Literal["paper", "recipe"]
"""Whose start value and distance."""

LEAST_KEPT, MOST_KEPT = 0.875, 0.96
"""Bounds of rho."""


class Tracker(NamedTuple):
    """(P,) fp64 each."""

    alpha_P: Tensor
    beta_P: Tensor

    @property
    def value_P(self) -> Tensor:
        """Expected reward."""
        return self.alpha_P / (self.alpha_P + self.beta_P)


def started(reward_P: Tensor, samples_P: Tensor, *, variant: SpoVariant) -> Tracker:
    """From rewards that were sampled before training. reward_P: summed over the `samples_P` samples of each prompt that
    have a reward.

    These samples count where methods are compared at equal numbers of samples.
    """
    total_P, count_P = reward_P.double(), samples_P.double()
    _check_rewards(total_P / count_P.clamp(min=1))
    if variant == "paper":
        value_P = total_P / count_P.clamp(min=1)
    else:
        value_P = (total_P + 0.5) / (count_P + 1)
    known_P, size_P = count_P > 0, torch.full_like(count_P, 1 / (1 - LEAST_KEPT))
    size_P = torch.where(known_P, size_P, torch.ones_like(size_P))
    value_P = torch.where(known_P, value_P, torch.full_like(value_P, 0.5))
    return Tracker(size_P * value_P, size_P * (1 - value_P))


def distances(logp_N: Tensor, last_logp_N: Tensor, prompt_N: Tensor, *, prompts: int, variant: SpoVariant) -> Tensor:
    """(P,) D, 0 for a prompt without a last answer.

    logp_N: of the tokens of the last answer now; last_logp_N: when they were drawn. prompt_N: int64, whose they are.
    The paper's KL is estimated on what the last policy drew, r log r - r + 1 with r = p now / p then: its mean is the
    KL, and it is never below 0.
    """
    log_r_N = (logp_N - last_logp_N).detach().double()
    if variant == "recipe":
        return means_of(log_r_N.abs(), prompt_N, prompts)
    log_r_N = log_r_N.clamp(-GREATEST_LOG_RATIO, GREATEST_LOG_RATIO)
    return means_of(log_r_N.exp() * (log_r_N - 1) + 1, prompt_N, prompts)


def kept_share(distance_P: Tensor, *, half_life: float) -> Tensor:
    """(P,) rho. half_life: the distance, in nats, that halves the past (recipe: .06)."""
    if not half_life > 0:
        raise UserError(f"SPO's half-life is {half_life} nats; wanted above 0, such as 0.06")
    return torch.exp2(-distance_P / half_life).clamp(LEAST_KEPT, MOST_KEPT)


def updated(tracker: Tracker, reward_P: Tensor, kept_P: Tensor) -> Tracker:
    """After one sample of each prompt; a missing reward (NaN) leaves its prompt as it was."""
    _check_rewards(reward_P)
    there_P = ~reward_P.isnan()
    alpha_P = torch.where(there_P, kept_P * tracker.alpha_P + reward_P, tracker.alpha_P)
    beta_P = torch.where(there_P, kept_P * tracker.beta_P + (1 - reward_P), tracker.beta_P)
    return Tracker(alpha_P, beta_P)


def prompt_weights(value_P: Tensor) -> Tensor:
    """(P,) above 0: prompts that are solved half the time first, and none never."""
    return (value_P * (1 - value_P)).clamp(min=0).sqrt() + 0.05


def _check_rewards(reward_P: Tensor) -> None:
    wrong_P = (reward_P < 0) | (reward_P > 1)
    if wrong_P.any():
        raise UserError(
            f"SPO's tracker got a reward of {float(reward_P[wrong_P][0])}; wanted 0 to 1, as it counts successes: "
            "scale the rewards, or use another stage"
        )
