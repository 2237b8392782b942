"""The loss of a step, as its keys name it: a weighted sum of losses of `losses.preference`."""

from __future__ import annotations

from torch import Tensor

from lifecycle.losses import preference
from lifecycle.losses.preference import AnswerLogprobs, PairLogprobs, diverged
from lifecycle.stages.preference.settings import COUNTING, OF_RATIOS, REFERENCE_FREE, UNPAIRED, PreferenceKeys


class Objective:
    """What `keys` ask for. paired: whether it is of pairs. by_mean: whether answers are compared by the mean over their
    tokens. beta: of the first loss."""

    def __init__(self, keys: PreferenceKeys) -> None:
        self._keys, self._weights = keys, keys.weights
        self.paired = not self._weights.keys() & UNPAIRED
        self.by_mean = bool(self._weights.keys() & {"simpo", "orpo"})
        self.beta = next((v["beta"] for v in map(keys.arguments, self._weights) if "beta" in v), 1.0)

    def of_pairs(self, pairs: PairLogprobs, tokens_per_pair: Tensor) -> Tensor:
        """(P,) losses. tokens_per_pair: (), of the chosen answers of the whole step."""
        keys = self._keys
        changed = (
            pairs
            if self._weights.keys() <= REFERENCE_FREE
            else diverged(pairs, keys.divergence, alpha=keys.divergence_alpha)
        )
        total = 0 * pairs.chosen
        for name, weight in self._weights.items():
            of = changed if name in OF_RATIOS else pairs
            counted = {"tokens_per_pair": tokens_per_pair} if name in COUNTING else {}
            total = total + weight * getattr(preference, name)(of, **keys.arguments(name), **counted)
        return total

    def of_step(self, sums: Tensor) -> Tensor:
        """(), from (2,) sums over a whole step: tokens of a pair's chosen answer; of single answers the baseline."""
        return sums[0] / sums[1].clamp(min=1) if self.paired else preference.kto_baseline(*sums)

    def of_answers(self, answers: AnswerLogprobs, baseline: Tensor) -> Tensor:
        """(Q,) losses. baseline: of the whole step."""
        return self._weights["kto"] * preference.kto(answers, baseline=baseline, **self._keys.arguments("kto"))
