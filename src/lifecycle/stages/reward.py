"""A reward model: of two answers to one prompt, the chosen one gets the higher score.

    loss = -log sigmoid(r_chosen - r_rejected - margin) + centring (r_chosen + r_rejected)^2     mean over the pairs

r is the score behind the token that ends the answer (`losses.ranking`). The network is the parent's with a score in
place of its head. One packed forward pass serves both sides of all pairs. The loss of held-out pairs has neither margin
nor centring, so that it means the same in every run: -log of the probability that the chosen answer is the better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lifecycle.batch import PairBatch, StepBatch
from lifecycle.bounds import Keys, NotNegative
from lifecycle.losses.ranking import bradley_terry, centring
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.preference import calibration
from lifecycle.stages.preference.answers import pair_scores
from lifecycle.stages.preference.told import summed
from lifecycle.stages.run.inheritance import PeakRate
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.optimization import OptimizationKeys


def faults(config: Mapping[str, Any]) -> list[str]:
    """What does not go together with this stage."""
    if (config.get("data") or {}).get("long_examples") != "shorten":
        return []
    return [
        "data.long_examples is 'shorten', and a reward model judges an answer by the token that ends it, which a "
        "shortened one has not: type data.long_examples=drop (a larger stage.sequence_length leaves out fewer)"
    ]


class Reward(Stage):
    """Bradley-Terry on packed pairs.

    centring: how much the sum of both scores counts. margin_scale: what the margins that the data gives are multiplied
    with.
    """

    views = frozenset({"comparison"})
    starts_from_parent = True
    ends_in_score = True
    takes_over = (PeakRate,)
    measures = calibration.MEASURES
    told = staticmethod(calibration.told)
    faults = staticmethod(faults)

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: Keys[OptimizationKeys],
        centring: NotNegative,
        margin_scale: NotNegative,
        setup: Setup,
    ) -> None:
        super().__init__(model=model, optimization=optimization, setup=setup)
        self.centring, self.margin_scale = centring, margin_scale

    def training_step(self, batch: StepBatch[PairBatch], batch_idx: int) -> None:
        """One optimizer step on this rank's pairs."""
        self.take_step(batch, self._loss_sum)

    def validation_step(self, batch: tuple[PairBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2 + MEASURES,) float64: the summed loss, the pairs, and the sums of what is measured."""
        chosen_P, rejected_P = pair_scores(self.network, *batch)
        loss = bradley_terry(chosen_P, rejected_P).double().sum()
        return torch.cat([loss[None], loss.new_tensor([len(chosen_P)]), calibration.sums(chosen_P - rejected_P)])

    def _loss_sum(self, batch: PairBatch, documents: DocumentMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        chosen_P, rejected_P = pair_scores(self.network, batch, documents)
        losses_P = bradley_terry(chosen_P, rejected_P, batch.margin * self.margin_scale)
        if self.centring:
            losses_P = losses_P + self.centring * centring(chosen_P, rejected_P)
        chosen, rejected = chosen_P.detach(), rejected_P.detach()
        measured = {
            "margin": chosen - rejected,
            "accuracy": (chosen > rejected).float(),
            "chosen": chosen,
            "rejected": rejected,
        }
        sources_P, ones = batch.tokens.source_ids.flatten()[batch.ends[0]], torch.ones_like(chosen)
        counted = {name: (value, ones) for name, value in measured.items()}
        return losses_P.sum(), summed(counted, sources_P, self.setup_facts.source_names, group="reward")
