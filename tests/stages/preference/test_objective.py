"""The loss that keys ask for is the weighted sum of those that they name, each of what it is about."""

from typing import Any

import pytest
import torch
from tests.stages.test_dpo import KEYS
from torch import Tensor

from lifecycle.config.signature import Walk
from lifecycle.losses import preference
from lifecycle.losses.preference import AnswerLogprobs, PairLogprobs, diverged
from lifecycle.stages.preference.objective import Objective, StepFacts
from lifecycle.stages.preference.settings import PreferenceKeys

FACTS = StepFacts(torch.tensor(4.0, dtype=torch.float64))
BETAS = {name: keys["beta"] for name, keys in KEYS["losses"].items()}


def objective(loss: Any, **changed: Any) -> Objective:
    walk = Walk()
    keys = walk.construct(PreferenceKeys, KEYS | {"loss": loss} | changed, ())
    assert not walk.faults
    return Objective(keys)


def pairs() -> PairLogprobs:
    draw = torch.Generator().manual_seed(0)
    values = [-5 * torch.rand(3, generator=draw, dtype=torch.float64) for _ in range(4)]
    tokens = torch.tensor([3.0, 5.0, 2.0], dtype=torch.float64), torch.tensor([4.0, 1.0, 6.0], dtype=torch.float64)
    return PairLogprobs(
        chosen=values[0],
        rejected=values[1],
        reference_chosen=values[2],
        reference_rejected=values[3],
        chosen_tokens=tokens[0],
        rejected_tokens=tokens[1],
    )


def equal(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_divergence_changes_the_losses_of_ratios_and_no_other_of_the_sum() -> None:
    made = objective({"sigmoid": 0.5, "simpo": 2.0}, divergence="alpha", divergence_alpha=0.3)
    ratios = diverged(pairs(), "alpha", alpha=0.3)
    gamma = KEYS["losses"]["simpo"]["gamma"]
    wanted = 0.5 * preference.sigmoid(ratios, beta=BETAS["sigmoid"])
    equal(made.of_pairs(pairs(), FACTS), wanted + 2 * preference.simpo(pairs(), beta=BETAS["simpo"], gamma=gamma))


def test_the_weight_of_kto_counts() -> None:
    one = pairs()
    assert one.reference_chosen is not None
    wanted = torch.tensor([True, False, True])
    answers = AnswerLogprobs(policy=one.chosen, reference=one.reference_chosen, wanted=wanted)
    once, twice = (objective({"kto": weight}).of_answers(answers, FACTS) for weight in (1.0, 2.0))
    equal(twice, 2 * once)


@pytest.mark.parametrize(("loss", "by_mean"), [("simpo", True), ("orpo", True), ("sigmoid", False), ("cpo", False)])
def test_what_is_told_is_by_token_where_the_loss_is(loss: str, by_mean: bool) -> None:
    assert objective(loss).by_mean == objective({"nll": 0.5, loss: 1.0}).by_mean == by_mean


def test_rewards_are_told_with_the_strength_of_the_first_loss_that_has_one() -> None:
    assert objective({"nll": 1.0, "simpo": 1.0, "sigmoid": 1.0}).beta == BETAS["simpo"] != BETAS["sigmoid"]
    assert objective({"sigmoid": 1.0, "simpo": 1.0}).beta == BETAS["sigmoid"]


def test_quantiles_are_of_differences_under_both_models_or_of_both_sides() -> None:
    one = pairs()
    assert one.reference_chosen is not None and one.reference_rejected is not None
    ours, theirs = one.chosen - one.rejected, one.reference_chosen - one.reference_rejected
    equal(objective("aot").compared(one), torch.stack([ours, theirs]))
    sides = one.chosen - one.reference_chosen, one.rejected - one.reference_rejected
    equal(objective("aot_unpaired").compared(one), torch.stack(sides))
