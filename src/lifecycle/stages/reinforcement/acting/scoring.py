"""What a step's samples are worth: named rewards, whose weighted sum is that of a sample.

Shapes: N samples of this rank, R rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.losses.policy.advantages import ACROSS_PROMPTS, AdvantageName, advantages, total_rewards
from lifecycle.losses.policy.shaping import overlong_penalty
from lifecycle.rewards.graders import KNOW_THE_ANSWER
from lifecycle.rewards.record import Answered
from lifecycle.stages.base import Stage
from lifecycle.stages.beside.frozen import HeldBeside
from lifecycle.stages.reinforcement.acting.records import records_of
from lifecycle.stages.reinforcement.acting.scorers.by_name import scorers_of
from lifecycle.stages.reinforcement.acting.scorers.graders import Graders, right_by
from lifecycle.stages.reinforcement.acting.scorers.scorer import SamplesToMark
from lifecycle.stages.reinforcement.learning.experience import of_all_ranks, place_of, prompt_of
from lifecycle.stages.reinforcement.reward_names import ENVIRONMENT, REWARD_MODEL
from lifecycle.stages.reinforcement.settings import RewardKeys
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.watched import Carried

OVERLONG = "overlong"
"""Name of the penalty for length, which is 0 to -1."""
UNBOUNDED = (REWARD_MODEL, ENVIRONMENT)
"""Rewards without a full mark."""


@dataclass(frozen=True, kw_only=True)
class SampleScores:
    """names, weights: of the R rewards; one that sources weigh differently stands there once for each weight. rewards:
    (N, R) float64, NaN where one is missing. place: (N,) int64, of each sample's prompt in the step. failed, timed_out:
    by name, how many samples a grader failed on, or took too long for. said: by name, what the first failure said.
    lost: (N, R) bool, the missing ones that should be there; None: none is. apart: whether each reward is compared by
    itself, not their sum."""

    names: list[str]
    weights: list[float]
    rewards: Tensor
    place: Tensor
    failed: dict[str, int]
    timed_out: dict[str, int]
    said: Mapping[str, str] = field(default_factory=dict)
    lost: Tensor | None = None
    apart: bool = False

    @property
    def weights_R(self) -> Tensor:
        """(R,) float64."""
        return torch.tensor(self.weights, dtype=torch.float64, device="cpu")

    @property
    def total(self) -> Tensor:
        """(N,) float64: the weighted sum of what there is; NaN of a sample without any that has a weight."""
        missing = self.rewards.isnan() | (self.weights_R == 0)
        return (self.rewards.nan_to_num(0.0) * self.weights_R).sum(1).masked_fill(missing.all(1), torch.nan)

    @property
    def filled(self) -> Tensor:
        """(N,) float64: the same as samples are compared by it, a missing reward counted as the mean of its prompt's
        others. All samples of a prompt must be there."""
        _, group_N = self.place.unique(return_inverse=True)
        return total_rewards(self.rewards, self.weights_R, group_N)

    @property
    def compared_by(self) -> Tensor:
        """(N,) or (N, R) float64: what samples of a prompt have to differ in so that they teach. All samples of a
        prompt must be there."""
        return self.rewards.masked_fill(self.weights_R == 0, torch.nan) if self.apart else self.filled

    @property
    def incomplete(self) -> Tensor:
        """(N,) bool: whether a sample has lost a reward that no other of its prompt has either, so that its sum is of
        fewer than those of other prompts."""
        lost = torch.zeros_like(self.rewards, dtype=torch.bool) if self.lost is None else self.lost
        places, group_N = self.place.unique(return_inverse=True)
        there_NR = (~self.rewards.isnan()).double()
        there_GR = there_NR.new_zeros(len(places), len(self.names)).index_add(0, group_N, there_NR)
        return (lost & (self.weights_R != 0) & (there_GR[group_N] == 0)).any(1)

    @property
    def worth(self) -> Tensor:
        """(N,) float64: what is told of each sample: `filled`; NaN of an `incomplete` one, which is worth not less for
        what was not marked."""
        return self.filled.masked_fill(self.incomplete, torch.nan)

    @property
    def is_full(self) -> Tensor:
        """(N,) bool: whether no reward of a sample could be higher; never where it has one whose marks have no
        bound."""
        graded = [r for r, name in enumerate(self.names) if name != OVERLONG and self.weights[r] > 0]
        bounded = torch.tensor([self.names[r] not in UNBOUNDED for r in graded], dtype=torch.bool, device="cpu")
        marks = self.rewards[:, graded]
        return ((marks >= 1) & bounded | marks.isnan()).all(1) & ~marks.isnan().all(1)

    @property
    def right(self) -> Tensor:
        """(N,) float64: 1 where every grader that knows the answer gave 1, else 0; NaN of a sample that none marked. A
        reward for shape, of a length for one, makes no answer right or wrong."""
        knowing = [r for r, name in enumerate(self.names) if name in KNOW_THE_ANSWER and self.weights[r] > 0]
        return right_by(self.rewards[:, knowing])

    def rows(self, indices: Sequence[int]) -> SampleScores:
        """Of the samples at `indices`; what failed is told of all."""
        chosen = torch.tensor(list(indices), dtype=torch.long, device="cpu")
        lost = None if self.lost is None else self.lost[chosen]
        return replace(self, rewards=self.rewards[chosen], place=self.place[chosen], lost=lost)

    @classmethod
    def joined(cls, parts: Sequence[SampleScores]) -> SampleScores:
        """Of the samples of all parts, one part after the other."""
        rewards, place = torch.cat([part.rewards for part in parts]), torch.cat([part.place for part in parts])
        lost = [part.lost for part in parts if part.lost is not None]
        return replace(parts[0], rewards=rewards, place=place, lost=torch.cat(lost) if lost else None)


class Scoring:
    """Marks samples by the rewards of their sources. longest: tokens of a completion at most. apart: see
    `SampleScores`."""

    def __init__(self, keys: RewardKeys, setup: Setup, *, longest: int, apart: bool = False) -> None:
        self._keys, self._setup, self._longest, self._apart = keys, setup, longest, apart
        own = [keys.weights if of is None else of for of in setup.source_rewards]
        self._columns = list(dict.fromkeys(column for of in own for column in of.items()))
        self._of_source = own
        by_source = {
            name: of for name, of in zip(setup.source_names, setup.source_rewards, strict=True) if of is not None
        }
        self._scorers, self._told = scorers_of(keys, setup, by_source), set[str]()
        self._asked_for = {name for one in self._scorers for name in one.names}

    @property
    def beside(self) -> list[HeldBeside]:
        """The networks that mark, for the stage to hold."""
        return [one.beside for one in self._scorers if one.beside is not None]

    @property
    def carried(self) -> dict[str, Carried]:
        """What a checkpoint holds of those that mark, by name."""
        return {name: one for scorer in self._scorers for name, one in scorer.carried.items()}

    def told(self) -> dict[str, Tensor]:
        """(2,) float64 sums and counts of what those that mark tell beside their marks, since it was last asked."""
        return {name: pair for scorer in self._scorers for name, pair in scorer.told().items()}

    @property
    def names(self) -> list[str]:
        """Of the rewards, each once."""
        return list(dict.fromkeys(name for name, _ in self._columns))

    def close(self) -> None:
        """End the processes that grade; the next call starts new ones."""
        for one in self._scorers:
            one.close()

    def scores(self, stage: Stage, rollout: Rollout, prompts: PromptBatch) -> SampleScores:
        """Of every sample. Every rank must call."""
        asked = self._asked(stage, rollout, prompts)
        found = [one.marked(asked) for one in self._scorers]
        marks = {name: marks_N for one in found for name, marks_N in one.marks.items()}
        for name, text in ((name, text) for one in found for name, text in one.said.items()):
            if name not in self._told:  # the first of a process; the others are counted
                self._told.add(name)
                stage.meter.say(f"the reward {name} has failed on an answer, which has no mark of it: {text}")
        there_NR = self._there(asked)
        rewards_NR = torch.stack([marks[name] for name, _ in self._columns], 1)
        lost = {name: lost_N for one in found for name, lost_N in one.lost.items()}
        never_N = torch.zeros(len(rollout), dtype=torch.bool, device="cpu")
        lost_NR = torch.stack([lost.get(name, never_N) for name, _ in self._columns], 1)
        scores = SampleScores(
            names=[name for name, _ in self._columns],
            weights=[weight for _, weight in self._columns],
            rewards=rewards_NR.where(there_NR, torch.nan),
            place=place_of(rollout),
            failed={name: count for one in found for name, count in one.failed.items()},
            timed_out={name: count for one in found for name, count in one.timed_out.items()},
            said={name: text for one in found for name, text in one.said.items()},
            lost=lost_NR & there_NR,
            apart=self._apart,
        )
        return scores if self._keys.overlong_buffer is None else self._shortened(scores, rollout)

    def _there(self, asked: SamplesToMark) -> Tensor:
        """(N, R) bool: whether the source of a sample has a reward."""
        sources = [self._of_source[self._setup.source_names.index(name)] for name in asked.sources]
        mine_NR = [[column in of.items() for column in self._columns] for of in sources]
        shape = (len(asked), len(self._columns))
        return torch.tensor(mine_NR, dtype=torch.bool, device="cpu").view(shape)

    def stated(self, stage: Stage, rollout: Rollout, prompts: PromptBatch) -> dict[str, Tensor]:
        """By grader that can tell, (N,) whether it finds an answer to mark, right or wrong; NaN where it is not
        asked."""
        asked = self._asked(stage, rollout, prompts)
        found = [one.stated(asked) for one in self._scorers if isinstance(one, Graders)]
        return {name: stated_N for one in found for name, stated_N in one.items()}

    def right(self, said: Sequence[str], records: Sequence[Answered], sources: Sequence[str]) -> Tensor:
        """(N,) float64 of texts, each with the record and the source of its prompt: 1 where every grader that knows
        the answer gives 1, else 0; NaN where the rewards have none."""
        for one in self._scorers:
            if isinstance(one, Graders):
                return one.right(said, records, sources)
        return torch.full((len(said),), torch.nan, dtype=torch.float64, device="cpu")

    def _asked(self, stage: Stage, rollout: Rollout, prompts: PromptBatch) -> SamplesToMark:
        index = prompt_of(rollout, prompts)
        source_N = prompts.source_ids[torch.tensor(index, dtype=torch.long, device="cpu")].tolist()
        wanted = {
            name: torch.tensor([name in self._of_source[s] for s in source_N], dtype=torch.bool, device="cpu")
            for name in self._asked_for
        }
        return SamplesToMark(
            stage=stage,
            rollout=rollout,
            prompts=prompts,
            index=index,
            records=records_of(prompts, self._setup),
            sources=[self._setup.source_names[s] for s in source_N],
            wanted=wanted,
        )

    def _shortened(self, found: SampleScores, rollout: Rollout) -> SampleScores:
        assert self._keys.overlong_buffer is not None
        penalty_N = overlong_penalty(rollout.length, longest=self._longest, buffer=self._keys.overlong_buffer)
        penalty_N = penalty_N.masked_fill(found.total.isnan(), torch.nan)  # it is taken off a reward, and is none
        rewards = torch.cat([found.rewards, penalty_N[:, None]], 1)
        lost = None if found.lost is None else torch.cat([found.lost, torch.zeros_like(found.lost[:, :1])], 1)
        names, weights = [*found.names, OVERLONG], [*found.weights, 1.0]
        return replace(found, names=names, weights=weights, rewards=rewards, lost=lost)


def compared(scores: SampleScores, *, kind: AdvantageName, device: torch.device) -> Tensor:
    """(N,) advantages of this rank's samples, each compared with the others of its prompt, and with all of the step.
    Every rank must call."""
    rewards_NR = scores.rewards
    if kind in ACROSS_PROMPTS:
        rewards_NR = rewards_NR.masked_fill(scores.incomplete[:, None], torch.nan)
    (rewards_SR, place_S), mine = of_all_ranks([rewards_NR, scores.place], device)
    _, group_S = place_S.unique(return_inverse=True)
    return advantages(rewards_SR, scores.weights_R, group_S, kind=kind)[mine]


def comparable(scores: SampleScores) -> Tensor:
    """(N,) float64: the weighted sum of each sample; NaN where it lacks a reward that another of its prompt has, as a
    sum of fewer things."""
    total_N, missing_NR = scores.total, scores.rewards.isnan() & (scores.weights_R != 0)
    for place in scores.place.unique().tolist():
        mine_N = scores.place == place
        asked_R = ~missing_NR[mine_N].all(0)
        total_N[mine_N] = total_N[mine_N].masked_fill((missing_NR[mine_N] & asked_R).any(1), torch.nan)
    return total_N
