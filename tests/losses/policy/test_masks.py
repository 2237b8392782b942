"""Masks against the sampler: by hand, at ratio 1, on their bounds, and of each sample alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.losses.policy.masks import (
    SamplerMasks,
    dppo,
    geometric,
    masked,
    off_policy,
    product,
    ratio_facts,
    truncated,
)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


RHO = doubles(0.25, 1.0, 2.0, 8.0)
OLD, MU = RHO.log() - 2, torch.full((4,), -2.0, dtype=torch.float64)


def test_tokens_by_hand() -> None:
    clipped = truncated(OLD, MU, between=(0.5, 3.0))
    assert clipped.weight_N.tolist() == pytest.approx([0.5, 1, 2, 3])
    assert clipped.cut_N.tolist() == [True, False, False, True]
    dropped = masked(OLD, MU, between=(0.5, 5.0))
    assert dropped.weight_N.tolist() == pytest.approx([0, 1, 2, 0])
    assert dropped.cut_N.tolist() == [True, False, False, True]
    assert truncated(OLD, MU, between=(0.0, math.inf)).weight_N.tolist() == pytest.approx(RHO.tolist())


def test_the_geometric_mean_of_a_sample_by_hand() -> None:
    """(0.25 * 8)^(1/2) = 1.41, (1 * 2)^(1/2) = 1.41; alone 0.25 and 8 are outside."""
    sequence = torch.tensor([0, 1, 1, 0])
    for between, kept in (((0.5, 1.5), [1, 1, 1, 1]), ((0.5, 1.4), [0, 0, 0, 0])):
        found = geometric(OLD, MU, sequence, sequences=3, between=between)
        assert found.weight_N.tolist() == kept and found.cut_N.tolist() == [not k for k in kept]
    alone = geometric(OLD, MU, torch.arange(4), sequences=4, between=(0.5, 1.5))
    assert alone.weight_N.tolist() == [0, 1, 0, 0]


def test_a_long_sample_is_no_likelier_to_be_cut_by_its_geometric_mean() -> None:
    many = torch.full((500,), math.log(1.0005), dtype=torch.float64)
    found = geometric(many, torch.zeros_like(many), torch.zeros(500).long(), sequences=1, between=(0.999, 1.001))
    assert found.weight_N.all() and float(many.sum().exp()) > 1.28


def test_dppo_by_hand() -> None:
    """Probability 0.5 at the draw: moved by +0.3, -0.3, and not far."""
    now, drawn = doubles(0.8, 0.8, 0.2, 0.2, 0.6, 0.8).log(), torch.full((6,), 0.5, dtype=torch.float64).log()
    found = dppo(now, drawn, doubles(1, -1, 1, -1, 1, 0), threshold=0.2)
    assert found.weight_N.tolist() == [0, 1, 1, 0, 1, 1]
    assert found.cut_N.tolist() == [True, False, False, True, False, False]


def test_off_policy_samples_by_hand() -> None:
    """Means of l_mu - l: 0.6, 0.6 and 0.4; only a negative advantage is dropped, and only above the threshold."""
    gap, sequence = doubles(1.0, 0.6, 0.2, 0.6, 0.4), torch.tensor([0, 1, 0, 1, 2])
    found = off_policy(-gap, torch.zeros_like(gap), doubles(-1, 1, -1, 1, -1), sequence, sequences=3, threshold=0.5)
    assert found.weight_N.tolist() == [0, 1, 0, 1, 1]
    exact = off_policy(doubles(-0.5), doubles(0), doubles(-1), torch.tensor([0]), sequences=1, threshold=0.5)
    assert exact.weight_N.tolist() == [1]  # equal is not above
    likelier = off_policy(gap, torch.zeros_like(gap), -gap, sequence, sequences=3, threshold=0.5)
    assert likelier.weight_N.all()


ALL = SamplerMasks(
    truncate_between=(0.0, 2.0), geometric_between=(0.999, 1.002), dppo_threshold=0.2, off_policy_threshold=0.5
)


def random_tokens(seed: int, *, drift: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.repeat_interleave(torch.arange(4), torch.tensor([3, 1, 5, 2]))
    mu, first, second = torch.randn(3, len(sequence), dtype=torch.float64, generator=generator).unbind()
    advantage = torch.randn(4, dtype=torch.float64, generator=generator)[sequence]
    mu = mu - 3
    old = mu + drift * first
    logps = {"logp_N": old + drift * second, "old_logp_N": old, "sampler_logp_N": mu}
    return logps | {"advantage_N": advantage, "sequence_N": sequence}


def test_where_sampler_and_policy_are_one_nothing_is_cut() -> None:
    """So at one update a rollout, with one engine, no mask can fire."""
    masks = ALL.of(**random_tokens(0, drift=0), sequences=4)
    assert [*masks] == ["truncated", "geometric", "dppo", "off_policy"]
    assert not any(mask.cut_N.any() for mask in masks.values())
    weight = product(masks)
    assert weight is not None and (weight == 1).all()


def test_weights_are_multiplied_and_none_is_none() -> None:
    given = random_tokens(1, drift=1.0)
    masks = SamplerMasks(keep_between=(0.5, 5.0), dppo_threshold=0.01).of(**given, sequences=4)
    weight = product(masks)
    assert weight is not None and torch.equal(weight, masks["masked"].weight_N * masks["dppo"].weight_N)
    assert masks["dppo"].cut_N.any() and masks["masked"].cut_N.any()
    assert product(SamplerMasks().of(**given, sequences=4)) is None


def test_weights_are_constants() -> None:
    given = random_tokens(2, drift=0.5)
    for name in ("logp_N", "old_logp_N", "sampler_logp_N", "advantage_N"):
        given[name].requires_grad_()
    assert not any(mask.weight_N.requires_grad for mask in ALL.of(**given, sequences=4).values())


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_has_its_weights_whatever_stands_beside_it(seed: int) -> None:
    given = random_tokens(seed, drift=0.5)
    whole = product(ALL.of(**given, sequences=4))
    assert whole is not None
    for sample in range(4):
        mine = given["sequence_N"] == sample
        alone = {name: value[mine] for name, value in given.items()} | {
            "sequence_N": torch.zeros(len(mine))[mine].long()
        }
        weight = product(ALL.of(**alone, sequences=1))
        assert weight is not None and torch.equal(weight, whole[mine])


def test_facts_are_those_before_the_bounds_and_join_over_parts() -> None:
    facts = ratio_facts(OLD, MU)
    assert [float(fact) for fact in facts] == pytest.approx([4, 11.25, 0.0625 + 1 + 4 + 64, 8])
    assert float(facts.mean) == pytest.approx(11.25 / 4)
    assert float(facts.effective_share) == pytest.approx(11.25**2 / (4 * 69.0625))
    parts = ratio_facts(OLD[:1], MU[:1]).joined(ratio_facts(OLD[1:1], MU[1:1])).joined(ratio_facts(OLD[1:], MU[1:]))
    assert [float(a) for a in parts] == pytest.approx([float(b) for b in facts])
    nothing = ratio_facts(OLD[:0], MU[:0])
    assert (float(nothing.mean), float(nothing.effective_share), float(nothing.largest)) == (0, 0, 0)
    assert float(ratio_facts(MU, MU).effective_share) == 1
    far = ratio_facts(torch.tensor([0.0]), torch.tensor([-500.0]))
    assert all(math.isfinite(float(fact)) for fact in far)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "twice": ({"truncate_between": (0.0, 2.0), "keep_between": (0.5, 5.0)}, "count twice"),
    "not around 1": ({"truncate_between": (1.5, 2.0)}, "ratios around 1"),
    "logarithms": ({"keep_between": (-0.7, 1.6)}, "ratios around 1"),
    "geometric": ({"geometric_between": (0.5, 0.9)}, "geometric_between"),
    "off_policy": ({"off_policy_threshold": -0.5}, "off_policy_threshold is -0.5"),
    "dppo": ({"dppo_threshold": math.nan}, "dppo_threshold is nan"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bounds_that_cannot_be_meant_are_refused(case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        SamplerMasks(**given)
