"""The rewards of a step's samples: named graders, whose weighted sum is what a sample is worth.

Shapes: N samples of this rank, R rewards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.rewards.choice import choice
from lifecycle.rewards.exact_match import exact_match
from lifecycle.rewards.number import number
from lifecycle.rewards.record import Answered, Grader
from lifecycle.stages.reinforcement.experience import place_of, prompt_of
from lifecycle.stages.reinforcement.settings import RewardKeys
from lifecycle.stages.run.setup import Setup

GRADERS: dict[str, Grader] = {"number": number, "choice": choice, "exact_match": exact_match}


@dataclass(frozen=True, kw_only=True)
class Graded:
    """names, weights: of the R rewards. rewards: (N, R) float64, NaN where one is missing. place: (N,) int64, of each
    sample's prompt in the step."""

    names: list[str]
    weights: list[float]
    rewards: Tensor
    place: Tensor

    @property
    def total(self) -> Tensor:
        """(N,) float64: the weighted sum of what there is; NaN of a sample without any."""
        weights_R = torch.tensor(self.weights, dtype=torch.float64, device="cpu")
        missing = self.rewards.isnan()
        return (self.rewards.nan_to_num(0.0) * weights_R).sum(1).masked_fill(missing.all(1), torch.nan)


class Grading:
    """Grades samples."""

    def __init__(self, keys: RewardKeys, setup: Setup) -> None:
        self._setup = setup
        own = [keys.weights if of is None else of for of in setup.source_rewards]
        self._columns = list(dict.fromkeys(column for of in own for column in of.items()))
        self._of_source = [{*of.items()} for of in own]

    def graded(self, rollout: Rollout, prompts: PromptBatch) -> Graded:
        """The rewards of every sample."""
        rewards_NR = torch.full((len(rollout), len(self._columns)), torch.nan, dtype=torch.float64, device="cpu")
        for n, i in enumerate(prompt_of(rollout, prompts)):
            answer, source = prompts.answer[i], int(prompts.source_ids[i])
            if answer is None:
                continue
            for r, column in enumerate(self._columns):
                if column in self._of_source[source]:
                    record = Answered(answer=answer, meta=prompts.meta[i])
                    rewards_NR[n, r] = GRADERS[column[0]](rollout.text[n], record)
        names, weights = [name for name, _ in self._columns], [weight for _, weight in self._columns]
        return Graded(names=names, weights=weights, rewards=rewards_NR, place=place_of(rollout))
