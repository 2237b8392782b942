"""Rewards less what length and distance cost: by hand, on their borders, and of each sample alone."""

import math

import pytest
import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.losses.policy.shaping import overlong_penalty, token_rewards
from lifecycle.losses.policy.sums import sums_of


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_overlong_by_hand() -> None:
    lengths = torch.tensor([0, 6, 7, 8, 9, 10, 11, 99])
    found = overlong_penalty(lengths, longest=10, buffer=4)
    assert found.tolist() == [0, 0, -0.25, -0.5, -0.75, -1, -1, -1]
    assert overlong_penalty(torch.tensor([0, 5, 10]), longest=10, buffer=10).tolist() == [0, -0.5, -1]


@pytest.mark.parametrize("buffer", [0, -1, 11])
def test_a_buffer_that_cannot_be_meant_is_refused(buffer: int) -> None:
    with pytest.raises(UserError, match="wanted 1 to 10"):
        overlong_penalty(torch.tensor([3]), longest=10, buffer=buffer)


def test_rewards_of_tokens_by_hand() -> None:
    kl, sequence = doubles(0.1, 0.2, 0.3, -0.1, 0.5), torch.tensor([0, 0, 2, 2, 1])
    found = token_rewards(doubles(1, 20, -30), kl, sequence, coefficient=0.5)
    assert found.tolist() == pytest.approx([-0.05, -0.1 + 1, -0.15, 0.05 - 30, -0.25 + 20])
    missing = token_rewards(doubles(1, math.nan, 3), kl, sequence, coefficient=0.0)
    assert missing.tolist() == [0, 1, 0, 3, 0]
    assert token_rewards(doubles(1), kl[:0], sequence[:0], coefficient=1.0).shape == (0,)


def test_rewards_have_no_gradient() -> None:
    kl, sequence = doubles(0.1, 0.2, 0.3, -0.1).requires_grad_(), torch.tensor([0, 0, 2, 2])
    assert not token_rewards(doubles(1, 2, 3), kl, sequence, coefficient=1.0).requires_grad


def test_the_rewards_of_a_samples_tokens_sum_to_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    sequence = torch.repeat_interleave(torch.arange(5), torch.tensor([3, 1, 4, 2, 6]))
    kl = torch.randn(len(sequence), dtype=torch.float64, generator=generator)
    score = torch.randn(5, dtype=torch.float64, generator=generator)
    by_token = token_rewards(score, kl, sequence, coefficient=0.3)
    summed = torch.zeros_like(score).index_add(0, sequence, by_token)
    torch.testing.assert_close(summed, score - 0.3 * sums_of(kl, sequence, 5))
