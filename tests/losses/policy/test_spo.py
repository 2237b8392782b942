"""SPO's tracker: by hand, at rest, in both variants, and with rewards that are missing or of another scale."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.errors import UserError
from lifecycle.losses.policy.advantages import advantages
from lifecycle.losses.policy.spo import (
    SpoVariant,
    Tracker,
    distances,
    kept_share,
    prompt_weights,
    started,
    updated,
)

VARIANTS: tuple[SpoVariant, ...] = get_args(SpoVariant)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_start_values_by_hand() -> None:
    """8 samples with 6 successes: 6 and 2; smoothed 8 * 6.5 / 9. Without samples 1/2 each."""
    rewards, samples = doubles(6, 0, 8, 0), torch.tensor([8, 8, 8, 0])
    paper = started(rewards, samples, variant="paper")
    assert paper.alpha_P.tolist() == [6, 0, 8, 0.5] and paper.beta_P.tolist() == [2, 8, 0, 0.5]
    recipe = started(rewards, samples, variant="recipe")
    assert recipe.alpha_P.tolist() == pytest.approx([52 / 9, 4 / 9, 68 / 9, 0.5])
    assert (recipe.alpha_P + recipe.beta_P).tolist() == pytest.approx([8, 8, 8, 1])
    four = started(doubles(3.0), torch.tensor([4]), variant="paper")  # fewer samples weigh no less: N0 is 8
    assert (float(four.alpha_P), float(four.beta_P)) == (6, 2)
    assert paper.value_P.tolist() == [0.75, 0, 1, 0.5] and paper.alpha_P.dtype == torch.float64


def test_an_update_by_hand() -> None:
    found = updated(Tracker(doubles(6, 6, 6), doubles(2, 2, 2)), doubles(1, 0.25, math.nan), doubles(0.9, 0.875, 0.9))
    assert found.alpha_P.tolist() == pytest.approx([6.4, 5.5, 6])
    assert found.beta_P.tolist() == pytest.approx([1.8, 2.5, 2])


def test_at_rest_a_tracker_holds_the_mean_and_the_window() -> None:
    tracker = Tracker(doubles(0.5, 0.5), doubles(0.5, 0.5))
    for _ in range(600):
        tracker = updated(tracker, doubles(0.3, 0.3), doubles(0.875, 0.96))
    assert tracker.value_P.tolist() == pytest.approx([0.3, 0.3])
    assert (tracker.alpha_P + tracker.beta_P).tolist() == pytest.approx([8, 25])


def test_how_much_is_kept_by_hand() -> None:
    found = kept_share(doubles(0, 0.006, 0.06, 50), half_life=0.06)
    assert found.tolist() == pytest.approx([0.96, 2**-0.1, 0.875, 0.875])
    with pytest.raises(UserError, match="half-life"):
        kept_share(doubles(0.1), half_life=0.0)


def test_distances_by_hand() -> None:
    """r = 2 and 1/2: r log r - r + 1; a prompt without tokens has moved by 0."""
    now, then = doubles(0.0, -1.0, -2.0), doubles(-math.log(2), -1.0 + math.log(2), -2.0)
    prompt = torch.tensor([0, 0, 2])
    recipe = distances(now, then, prompt, prompts=3, variant="recipe")
    assert recipe.tolist() == pytest.approx([math.log(2), 0, 0])
    paper = distances(now, then, prompt, prompts=3, variant="paper")
    wanted = (2 * math.log(2) - 1 + 0.5 * math.log(0.5) + 0.5) / 2
    assert paper.tolist() == pytest.approx([wanted, 0, 0])


def test_the_mean_of_the_papers_distance_is_the_kl_of_the_policy_now() -> None:
    generator = torch.Generator().manual_seed(0)
    now, then = (F.log_softmax(torch.randn(9, dtype=torch.float64, generator=generator), -1) for _ in range(2))
    every = distances(now, then, torch.arange(9), prompts=9, variant="paper")
    assert (every >= 0).all()
    assert float((then.exp() * every).sum()) == pytest.approx(float((now.exp() * (now - then)).sum()), rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_policy_that_stands_still_forgets_least(variant: SpoVariant) -> None:
    same = doubles(-1, -2)
    far = distances(doubles(-300.0), doubles(-1.0), torch.tensor([0]), prompts=1, variant=variant)
    assert kept_share(distances(same, same, torch.tensor([0, 0]), prompts=1, variant=variant), half_life=0.06) == 0.96
    assert far.isfinite().all() and kept_share(far, half_life=0.06) == 0.875


def test_weights_of_prompts_by_hand() -> None:
    assert prompt_weights(doubles(0, 0.5, 1, 0.1)).tolist() == pytest.approx([0.05, 0.55, 0.05, 0.35])


def test_advantages_are_those_of_a_batch() -> None:
    """Normalised over prompts that have one sample each, of the reward less the value before it."""
    rewards, value = doubles(1, 0, 1, 1), doubles(0.75, 0.75, 0.25, 0.5)
    found = advantages((rewards - value)[:, None], doubles(1), torch.arange(4), kind="batch")
    gaps = [0.25, -0.75, 0.75, 0.5]
    mean = sum(gaps) / 4
    std = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 3)
    assert found.tolist() == pytest.approx([(gap - mean) / (std + 1e-4) for gap in gaps])


@pytest.mark.parametrize("bad", [-0.1, 1.5, 3.0, math.inf])
def test_rewards_of_another_scale_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="wanted 0 to 1"):
        updated(Tracker(doubles(1), doubles(1)), doubles(bad), doubles(0.9))
    with pytest.raises(UserError, match="wanted 0 to 1"):
        started(doubles(8 * bad), torch.tensor([8]), variant="paper")
