"""Normalisers: by hand, and whatever way a step is split over micro-batches and ranks, also within a group."""

from typing import get_args

import pytest
import torch

from lifecycle.errors import UserError
from lifecycle.losses.policy.normalisers import NormaliserName, normaliser

KINDS: tuple[NormaliserName, ...] = get_args(NormaliserName)
TOKENS, GROUPS = torch.tensor([2, 4, 1, 3]), torch.tensor([0, 0, 1, 1])
SUMS = torch.tensor([4.0, 8, 5, 6], dtype=torch.float64)
MEANS: dict[NormaliserName, float] = {
    "token": 23 / 10,
    "sequence": (4 / 2 + 8 / 4 + 5 / 1 + 6 / 3) / 4,
    "prompt": (12 / 6 + 11 / 4) / 2,
    "constant": 23 / (4 * 8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_means_worked_by_hand(kind: NormaliserName) -> None:
    """Of samples whose tokens sum to SUMS."""
    weight, divisor = normaliser(TOKENS, GROUPS, kind=kind, length=8)
    assert float((weight * SUMS).sum() / divisor.sum()) == pytest.approx(MEANS[kind], rel=1e-14)
    assert weight.dtype == divisor.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_of_equal_values_the_mean_is_that_value(kind: NormaliserName) -> None:
    weight, divisor = normaliser(TOKENS, GROUPS, kind=kind, length=8)
    mean = float((weight * TOKENS).sum() / divisor.sum())
    assert mean == pytest.approx(10 / (4 * 8) if kind == "constant" else 1, rel=1e-14)


def test_equal_lengths_and_groups_make_all_kinds_one_up_to_the_constant() -> None:
    tokens, groups = torch.full((6,), 5), torch.arange(6) // 3
    sums = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = [normaliser(tokens, groups, kind=kind, length=5) for kind in KINDS]
    means = [float((weight * sums).sum() / divisor.sum()) for weight, divisor in pairs]
    assert means == pytest.approx([means[0]] * len(KINDS), rel=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_without_tokens_counts_in_the_constant_divisor_alone(kind: NormaliserName) -> None:
    tokens, groups = torch.tensor([2, 0, 4, 1, 3, 0]), torch.tensor([0, 0, 0, 1, 1, 2])
    weight, divisor = normaliser(tokens, groups, kind=kind, length=8)
    sums = torch.tensor([4.0, 0, 8, 5, 6, 0], dtype=torch.float64)
    wanted = 23 / (6 * 8) if kind == "constant" else MEANS[kind]
    assert float((weight * sums).sum() / divisor.sum()) == pytest.approx(wanted, rel=1e-14)
    assert weight.isfinite().all() and divisor.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_train_on_stays_finite(kind: NormaliserName) -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    weight, divisor = normaliser(empty, empty, kind=kind, length=8)
    assert weight.shape == divisor.shape == (0,)
    weight, divisor = normaliser(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 0]), kind=kind, length=8)
    assert weight.isfinite().all() and float(divisor.sum()) == (2 if kind == "constant" else 0)


@pytest.mark.parametrize("length", [None, 0, -3])
def test_a_constant_without_length_is_refused(length: int | None) -> None:
    with pytest.raises(UserError, match="max_new_tokens"):
        normaliser(TOKENS, GROUPS, kind="constant", length=length)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_a_step_split_anywhere_has_the_gradient_of_the_whole(seed: int, kind: NormaliserName) -> None:
    """Samples in any order over any number of parts, groups split too: sums of parts over one sum of divisors."""
    samples, parts, generator = 1 + seed, 1 + seed % 4, torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 6, (samples,), generator=generator)
    groups = torch.randint(0, 4, (samples,), generator=generator)
    weight, divisor = normaliser(tokens, groups, kind=kind, length=6)
    value = torch.randn(int(tokens.sum()), dtype=torch.float64, generator=generator)
    sequence = torch.repeat_interleave(torch.arange(samples), tokens)
    whole = weight[sequence] / divisor.sum().clamp(min=1e-9)
    order = torch.randperm(samples, generator=generator)
    again, below = torch.zeros_like(value), 0.0
    for part in order.chunk(parts):
        mine = normaliser(tokens[order], groups[order], kind=kind, length=6)  # gathered in another order
        rows = {int(sample): place for place, sample in enumerate(order)}
        for sample in part.tolist():
            again[sequence == sample] = mine.weight_S[rows[sample]]
            below += float(mine.divisor_S[rows[sample]])
    torch.testing.assert_close(again / max(below, 1e-9), whole, rtol=1e-12, atol=1e-12)
