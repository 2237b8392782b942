"""The loss of a step, as its keys name it: a weighted sum of losses of `losses.preference`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lifecycle.losses import preference
from lifecycle.losses.preference import AnswerLogprobs, PairLogprobs, diverged
from lifecycle.stages.preference.settings import (
    COUNTING,
    OF_RATIOS,
    REFERENCE_FREE,
    SORTING,
    UNPAIRED,
    PreferenceKeys,
)


class StepFacts(NamedTuple):
    """What a loss has to know of a whole step, over its micro-batches and ranks.

    number: () tokens of a pair's chosen answer; of single answers the baseline. quantiles: (2, S), for those that sort.
    """

    number: Tensor
    quantiles: Tensor | None = None


class Objective:
    """What `keys` ask for. paired: whether it is of pairs. by_mean: whether answers are compared by the mean over their
    tokens. sorts: whether it asks for the quantiles of a step. weighs: whether pairs count as the policy writes them.
    beta: of the first loss."""

    def __init__(self, keys: PreferenceKeys) -> None:
        self._keys, self._weights = keys, keys.weights
        self.paired = not self._weights.keys() & UNPAIRED
        self.by_mean = bool(self._weights.keys() & {"simpo", "orpo"})
        self.sorts = bool(self._weights.keys() & SORTING)
        self.weighs = keys.weighting == "wpo"
        self.beta = next((v["beta"] for v in map(keys.arguments, self._weights) if "beta" in v), 1.0)

    def of_pairs(self, pairs: PairLogprobs, step: StepFacts) -> Tensor:
        """(P,) losses."""
        keys = self._keys
        changed = (
            pairs
            if self._weights.keys() <= REFERENCE_FREE
            else diverged(pairs, keys.divergence, alpha=keys.divergence_alpha)
        )
        total = 0 * pairs.chosen
        for name, weight in self._weights.items():
            of = changed if name in OF_RATIOS else pairs
            known: dict[str, Tensor | None] = {"tokens_per_pair": step.number} if name in COUNTING else {}
            known |= {"quantiles": step.quantiles} if name in SORTING else {}
            total = total + weight * getattr(preference, name)(of, **keys.arguments(name), **known)
        return total

    def compared(self, pairs: PairLogprobs) -> Tensor:
        """(2, P): what the quantiles of a step are of."""
        assert pairs.reference_chosen is not None and pairs.reference_rejected is not None
        if "aot" in self._weights:
            two = pairs.chosen - pairs.rejected, pairs.reference_chosen - pairs.reference_rejected
        else:
            two = pairs.chosen_ratio, pairs.rejected_ratio
        return torch.stack(two)

    def of_step(self, sums: Tensor) -> StepFacts:
        """From (2,) sums over a whole step: of pairs the tokens of the chosen answers, and their number; of single
        answers the log-ratios of those behind other prompts, and theirs."""
        return StepFacts(sums[0] / sums[1].clamp(min=1) if self.paired else preference.kto_baseline(*sums))

    def of_answers(self, answers: AnswerLogprobs, step: StepFacts) -> Tensor:
        """(Q,) losses."""
        return self._weights["kto"] * preference.kto(answers, baseline=step.number, **self._keys.arguments("kto"))
