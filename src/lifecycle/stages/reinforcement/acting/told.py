"""What is told of the samples of a step, and of greedy answers to held-out prompts: sums, each with what it is divided
by.

rollout/reward            weighted sum of the rewards of a sample
reward/<name>             each reward, where it is not missing
rollout/length            tokens of a completion
rollout/entropy           of the distributions that its tokens were drawn from, in nats, all tokens alike
rollout/stopped           share of the completions that came to their own end
reward/<name>/failed      samples that a grader failed on, whose reward is missing
reward/<name>/timed_out   samples that it took too long for, whose reward is 0
rollout/groups_varying    share of the prompts whose samples differ in their reward: the others teach nothing
"""

from __future__ import annotations

import torch
from torch import Tensor

from lifecycle.batch import Rollout
from lifecycle.losses.policy.advantages import varying_groups
from lifecycle.stages.reinforcement.acting.scoring import SampleScores
from lifecycle.stages.reinforcement.learning.experience import finished

HELD_OUT = ("reward", "stopped", "length")
"""What is added up over greedy answers, in this order."""


def of_rollout(rollout: Rollout, scores: SampleScores) -> dict[str, Tensor]:
    """(2,) float64 by name: the same names on every rank."""
    _, group_N = scores.place.unique(return_inverse=True)
    varying_G = varying_groups(scores.total, group_N).double()
    return {**of_samples(rollout, scores), "rollout/groups_varying": _mean(varying_G)}


def of_samples(rollout: Rollout, scores: SampleScores) -> dict[str, Tensor]:
    """The same without what is told of groups."""
    told = {
        "rollout/reward": _mean(scores.total),
        "rollout/length": _mean(rollout.length.double()),
        "rollout/entropy": _mean(rollout.entropy[rollout.sampled].double()),
        "rollout/stopped": _mean(torch.tensor(finished(rollout), dtype=torch.float64, device="cpu")),
    }
    for name in dict.fromkeys(scores.names):
        columns = [r for r, one in enumerate(scores.names) if one == name]
        told[f"reward/{name}"] = _mean(scores.rewards[:, columns].flatten())
        for kind, counts in (("failed", scores.failed), ("timed_out", scores.timed_out)):
            told[f"reward/{name}/{kind}"] = torch.tensor([counts.get(name, 0), 1], dtype=torch.float64, device="cpu")
    return told


def held_out_sums(rollout: Rollout, scores: SampleScores) -> Tensor:
    """(2 + HELD_OUT,) float64: minus the summed reward, the number of answers, and the sums of what is measured."""
    reward, count = _mean(scores.total)
    stopped, length = float(sum(finished(rollout))), float(rollout.length.sum())
    return torch.tensor([-reward, count, reward, stopped, length], dtype=torch.float64, device="cpu")


def _mean(values_N: Tensor) -> Tensor:
    """(2,) float64: the sum of what there is, and how many there are."""
    there = ~values_N.isnan()
    return torch.stack([values_N.nan_to_num(0.0).sum(), there.sum().double()])
