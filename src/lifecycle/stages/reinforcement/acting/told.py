"""What is told of the samples of a step, and of greedy answers to held-out prompts: sums, each with what it is divided
by.

rollout/reward            weighted sum of the rewards of a sample, one that was lost as the mean of its prompt's others
reward/<name>             each reward, where it is not missing
rollout/length            tokens of a completion
rollout/entropy           of the distributions that its tokens were drawn from, in nats, all tokens alike
rollout/stopped           share of the completions that came to their own end
reward/<name>/failed      share of the samples that a grader failed on, whose reward is missing
reward/<name>/timed_out   share of the samples that it took too long for, whose reward is 0
rollout/turns             turns of the policy in a completion, where an environment answers
rollout/calls_failed      share of its calls that the environment could not answer
rollout/observed          share of the tokens of completions that the environment wrote, none of which is trained
rollout/groups_varying    share of the prompts whose samples differ in their reward: the others teach nothing

Of held-out prompts of which samples are drawn, too (k: 1, 2, 4, ... up to their number):

valid/<domain>/sampled_reward                mean reward of the samples
valid/<domain>/pass_at_<k>, _low, _high      chance that one of k samples is right, without bias, and its 95 % interval
                                             by the bootstrap over prompts; where graders know the answer
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lifecycle.batch import Dialogue, Rollout
from lifecycle.losses.policy.advantages import varying_groups
from lifecycle.rewards.interval import pass_at, pass_at_interval
from lifecycle.stages.reinforcement.acting.scoring import SampleScores
from lifecycle.stages.reinforcement.learning.experience import finished
from lifecycle.stages.step import mean_parts

ANSWERS, MARKED = "answers", "marked_prompts"
"""Numbers that are added up beside: greedy answers, and prompts of whose samples one has a reward."""
HELD_OUT: tuple[str, ...] = ("reward", "stopped", "length", ANSWERS)
"""What is added up over greedy answers, in this order."""
RIGHT = "right_"
"""Before a number of samples: prompts of which so many are right."""


def measures(samples: int) -> tuple[str, ...]:
    """What is added up over held-out prompts, of each of which so many samples are drawn beside the greedy answer."""
    drawn = ("sampled_reward", MARKED, *(f"{RIGHT}{right}" for right in range(samples + 1)))
    return (*HELD_OUT, *(drawn if samples else ()))


def of_rollout(rollout: Rollout, scores: SampleScores) -> dict[str, Tensor]:
    """(2,) float64 by name: the same names on every rank."""
    _, group_N = scores.place.unique(return_inverse=True)
    varying_G = varying_groups(scores.compared_by, group_N).double()
    return {**of_samples(rollout, scores), "rollout/groups_varying": mean_parts.of_known(varying_G)}


def of_samples(rollout: Rollout, scores: SampleScores) -> dict[str, Tensor]:
    """The same without what is told of groups."""
    told = {
        "rollout/reward": mean_parts.of_known(scores.worth),
        "rollout/length": mean_parts.of_known(rollout.length.double()),
        "rollout/entropy": mean_parts.of_known(rollout.entropy[rollout.sampled].double()),
        "rollout/stopped": mean_parts.of_known(torch.tensor(finished(rollout), dtype=torch.float64, device="cpu")),
    }
    for name in dict.fromkeys(scores.names):
        columns = [r for r, one in enumerate(scores.names) if one == name]
        told[f"reward/{name}"] = mean_parts.of_known(scores.rewards[:, columns].flatten())
        for kind, counts in (("failed", scores.failed), ("timed_out", scores.timed_out)):
            told[f"reward/{name}/{kind}"] = mean_parts.of_numbers(counts.get(name, 0), len(rollout))
    return told if rollout.dialogues is None else told | _of_dialogues(rollout, rollout.dialogues)


def held_out_sums(rollout: Rollout, scores: SampleScores) -> Tensor:
    """(2 + HELD_OUT,) float64: minus the summed reward, the number of answers that have one, and the sums of
    `HELD_OUT`."""
    reward, count = mean_parts.of_known(scores.worth)
    stopped, length = float(sum(finished(rollout))), float(rollout.length.sum())
    return torch.tensor([-reward, count, reward, stopped, length, len(rollout)], dtype=torch.float64, device="cpu")


def sampled_sums(rollout: Rollout, scores: SampleScores, samples: int) -> Tensor:
    """(3 + samples,) float64: the sums of what `measures` has beside `HELD_OUT`. A prompt with a sample that no grader
    who knows the answer has marked is in none of the numbers of right ones."""
    if not len(rollout):
        return torch.zeros(3 + samples, dtype=torch.float64, device="cpu")
    right_PS = scores.right.view(-1, samples)
    by_count = torch.bincount(right_PS[~right_PS.isnan().any(1)].sum(1).long(), minlength=samples + 1)
    return torch.cat([mean_parts.of_known(scores.worth.view(-1, samples).nanmean(1)), by_count.double()])


def held_out(means: Mapping[str, float], count: float) -> dict[str, float]:
    """What is logged of the means of `measures` over the `count` prompts whose greedy answer has a reward: each over
    what it is of, and pass@k in place of the numbers of right ones."""
    found = {"reward": means["reward"], **{name: means[name] / means[ANSWERS] for name in ("stopped", "length")}}
    if means.get(MARKED):
        found["sampled_reward"] = means["sampled_reward"] / means[MARKED]
    by_count = [round(value * count) for name, value in means.items() if name.startswith(RIGHT)]
    if not sum(by_count):
        return found
    for k in (2**power for power in range((len(by_count) - 1).bit_length())):
        low, high = pass_at_interval(k, by_count)
        found |= {f"pass_at_{k}": pass_at(k, by_count), f"pass_at_{k}_low": low, f"pass_at_{k}_high": high}
    return found


def _of_dialogues(rollout: Rollout, dialogues: list[Dialogue]) -> dict[str, Tensor]:
    observed = int((rollout.exists & ~rollout.sampled).sum())
    calls, failed = sum(one.calls for one in dialogues), sum(one.failed for one in dialogues)
    turns = sum(own for one in dialogues for own, _ in one.turns)
    return {
        "rollout/turns": mean_parts.of_numbers(turns, len(dialogues)),
        "rollout/calls_failed": mean_parts.of_numbers(failed, calls),
        "rollout/observed": mean_parts.of_numbers(observed, int(rollout.length.sum())),
    }
