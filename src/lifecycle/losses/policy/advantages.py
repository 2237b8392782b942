"""Advantages of samples: how much better each was rewarded than was to be expected of its prompt.

    group_std       (R - mean of the group) / (std of the group + eps)     GRPO, arXiv 2402.03300
    group_mean      R - mean of the group                                  Dr. GRPO, 2503.20783; V3.2, 2512.02556
    batch_std       (R - mean of the group) / (std of all R + eps)         2508.08221
    leave_one_out   R - mean of the others of the group                    RLOO, 2402.14740
    gdpo            each reward apart as by group_std, their weighted sum / (std of all sums + eps)      2601.05242
    batch           (R - mean of all R) / (std of all R + eps)             REINFORCE++, 2501.03262; SPO, 2509.13232
    none            R

R: the weighted sum of a sample's rewards. The std is the unbiased one (n - 1), as in TRL and verl, with eps = 1e-4, as
in TRL (verl: 1e-6; open-instruct: biased, 1e-8). NaN marks a reward that is missing: one that could not be computed,
which is not a reward of 0.

A missing reward of a sample counts as the mean of that reward in its group, so that it moves nothing; where the whole
group lacks it, as 0. (TRL counts both as 0.) A sample without any reward has the advantage 0 and is in no mean and no
std. A group whose rewards are equal has advantages of exactly 0 under every kind that takes the group's mean, and so
has a group of one.

Everything here is over ALL samples of a step: gather rewards and group numbers of every rank first. Tensors are small
and meant to be on the CPU, where graders put them. Shapes: S samples, R rewards, G groups numbered 0 to G - 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.losses.policy.sums import how_many, sums_of

AdvantageName = Literal["group_std", "group_mean", "batch_std", "leave_one_out", "gdpo", "batch", "none"]
"""What a reward is compared with, and divided by."""

ACROSS_PROMPTS: tuple[AdvantageName, ...] = ("batch", "none")
"""Those that compare a sample with samples of other prompts, or with 0; the others are 0 of a prompt's only sample."""

EPSILON = 1e-4
"""Added to a std before it divides. A std below it is an accident of rounding more often than a difference."""

LARGEST = 1e30
"""Rewards beyond it are refused: their squares would leave the numbers that fp64 can tell apart."""


def advantages(rewards_SR: Tensor, weights_R: Tensor, group_S: Tensor, *, kind: AdvantageName) -> Tensor:
    """(S,) finite, a constant, in the dtype of the rewards; sums are fp64.

    rewards_SR: of every sample of the step, NaN where missing. weights_R: of each reward; one of weight 0 counts
    nowhere. group_S: int64, which samples share a prompt. Raises UserError for an infinite reward.
    """
    if kind == "gdpo":
        total_S = _normalised_sum(rewards_SR, weights_R, group_S)
    else:
        total_S = total_rewards(rewards_SR, weights_R, group_S)
    count_S = _counts(total_S, group_S)
    mean_S, std_S = _moments(total_S, group_S)
    mean_B, std_B = _moments(total_S, torch.zeros_like(group_S))
    match kind:
        case "group_std":
            found_S = (total_S - mean_S) / (std_S + EPSILON)
        case "group_mean":
            found_S = total_S - mean_S
        case "batch_std":
            found_S = (total_S - mean_S) / (std_B + EPSILON)
        case "leave_one_out":
            found_S = (total_S - mean_S) * count_S / (count_S - 1).clamp(min=1)
        case "gdpo":  # every group sums to 0, so that the mean is 0; subtracted, its rounding would move equal groups
            found_S = total_S / (std_B + EPSILON)
        case "batch":
            found_S = (total_S - mean_B) / (std_B + EPSILON)
        case "none":
            found_S = total_S
    return found_S.nan_to_num(nan=0.0).to(rewards_SR.dtype)


def total_rewards(rewards_SR: Tensor, weights_R: Tensor, group_S: Tensor) -> Tensor:
    """(S,) fp64: the weighted sum of each sample's rewards, a missing one counted as the mean of it in the group.

    NaN where all of them are missing, those of weight 0 apart.
    """
    parts_SR, counts_R = _checked(rewards_SR, weights_R)
    missing_SR = parts_SR.isnan()
    means = [_moments(part_S, group_S)[0] for part_S in parts_SR.unbind(1)]
    filled_SR = torch.where(missing_SR, torch.stack(means, 1), parts_SR)
    total_S = (filled_SR * weights_R.double()).sum(1)
    return total_S.masked_fill((missing_SR | ~counts_R).all(1), torch.nan)


def varying_groups(rewards: Tensor, group_S: Tensor) -> Tensor:
    """(G,) bool: whether the rewards of a group differ at all, so that a policy can learn from it.

    rewards: (S,), as from `total_rewards`; or (S, R), where one reward that differs is enough, as it is for `gdpo`.
    Judged by equality, not by a std that rounding may leave above 0. NaN is left out.
    """
    groups = how_many(group_S)
    found_G = torch.zeros(groups, dtype=torch.bool, device=group_S.device)
    for part_S in (rewards if rewards.dim() == 2 else rewards[:, None]).unbind(1):
        least_G, most_G = (_extreme(part_S, group_S, groups, sign) for sign in (1, -1))
        found_G |= least_G < -most_G
    return found_G


def _checked(rewards_SR: Tensor, weights_R: Tensor) -> tuple[Tensor, Tensor]:
    """The rewards in fp64, and which of them count."""
    parts_SR = rewards_SR.double()
    bad_SR = parts_SR.abs() > LARGEST
    if bad_SR.any():
        sample, reward = bad_SR.nonzero()[0].tolist()
        raise UserError(
            f"reward {reward} of sample {sample} is {float(parts_SR[sample, reward])}; wanted a number of at most "
            f"{LARGEST:g}, or NaN for one that is missing: mend the reward function, or bound what it returns"
        )
    return parts_SR, (weights_R != 0).to(parts_SR.device)


def _normalised_sum(rewards_SR: Tensor, weights_R: Tensor, group_S: Tensor) -> Tensor:
    """(S,) of GDPO: each reward in units of its group's std, a missing one at the mean, then their weighted sum."""
    parts_SR, counts_R = _checked(rewards_SR, weights_R)
    found_S = torch.zeros_like(parts_SR[:, 0])
    for part_S, weight in zip(parts_SR.unbind(1), weights_R.double(), strict=True):
        mean_S, std_S = _moments(part_S, group_S)
        found_S = found_S + weight * ((part_S - mean_S) / (std_S + EPSILON)).nan_to_num(nan=0.0)
    return found_S.masked_fill((parts_SR.isnan() | ~counts_R).all(1), torch.nan)


def _moments(values_S: Tensor, group_S: Tensor) -> tuple[Tensor, Tensor]:
    """(S,) each: mean and unbiased std of the sample's group, without NaN; both 0 where there is nothing of which.

    The mean is the least value plus the mean of what lies above it: of equal values it is that value to the last bit.
    """
    groups, there_S = how_many(group_S), ~values_S.isnan()
    count_G = sums_of(there_S.double(), group_S, groups)
    least_G = _extreme(values_S, group_S, groups, 1)
    least_S = torch.where(count_G > 0, least_G, torch.zeros_like(least_G))[group_S]
    above_S = torch.where(there_S, values_S - least_S, torch.zeros_like(values_S))
    mean_S = least_S + (sums_of(above_S, group_S, groups) / count_G.clamp(min=1))[group_S]
    apart_S = torch.where(there_S, values_S - mean_S, torch.zeros_like(values_S))
    variance_G = sums_of(apart_S.square(), group_S, groups) / (count_G - 1).clamp(min=1)
    return mean_S, variance_G.sqrt()[group_S]


def _counts(values_S: Tensor, group_S: Tensor) -> Tensor:
    """(S,) how many values of the sample's group are there."""
    return sums_of((~values_S.isnan()).double(), group_S, how_many(group_S))[group_S]


def _extreme(values_S: Tensor, group_S: Tensor, groups: int, sign: int) -> Tensor:
    """(G,) least value of each group (sign 1), or minus the greatest one (sign -1); infinite where there is none."""
    signed_S = torch.where(values_S.isnan(), torch.full_like(values_S, torch.inf), sign * values_S)
    start_G = torch.full((groups,), torch.inf, dtype=values_S.dtype, device=values_S.device)
    return start_G.scatter_reduce(0, group_S, signed_S, "amin")
