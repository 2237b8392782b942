"""GAE, returns, whitening and the loss of values: by hand, against verl's formulas, packed as alone, split as whole."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lifecycle.losses.value import explained_variance, gae, mean_and_variance, moments, value_loss, whitened


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_gae_by_hand() -> None:
    """gamma and lambda 1/2: deltas 1 + 2 - 2 = 1, 0 + 1 - 4 = -3, 5 - 2 = 3, backwards by 1/4; a sample of one."""
    reward, value, sequence = doubles(1, 0, 5, 7), doubles(2, 4, 2, 3), torch.tensor([4, 4, 4, 1])
    found = gae(reward, value, sequence, gamma=0.5, lam=0.5)
    assert found.advantage_N.tolist() == [1 + (-3 + 3 / 4) / 4, -3 + 3 / 4, 3, 4]
    assert found.return_N.tolist() == [2.4375, 1.75, 5, 7]


def test_limits_of_lambda() -> None:
    """0: one step ahead. 1 with gamma 1: what is still to come, less the value; its return is that sum."""
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 9, dtype=torch.float64, generator=generator).unbind()
    sequence = torch.zeros(9, dtype=torch.int64)
    to_come = reward.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(gae(reward, value, sequence, gamma=1.0, lam=1.0).return_N, to_come)
    ahead = torch.cat([value[1:], doubles(0)])
    near = gae(reward, value, sequence, gamma=0.9, lam=0.0)
    torch.testing.assert_close(near.advantage_N, reward + 0.9 * ahead - value)
    assert gae(reward[:0], value[:0], sequence[:0], gamma=1.0, lam=0.9).return_N.shape == (0,)


def verl_gae(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """verl's recursion over a padded batch, in which masked tokens hand on what is behind them."""
    next_value, last = np.zeros(len(rewards)), np.zeros(len(rewards))
    advantage = np.zeros_like(values)
    for t in reversed(range(rewards.shape[1])):
        here = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * last
        next_value = np.where(mask[:, t], values[:, t], next_value)
        last = np.where(mask[:, t], here, last)
        advantage[:, t] = last
    return advantage, advantage + values


@pytest.mark.parametrize("seed", range(6))
def test_verls_recursion_over_padding_and_observations_gives_the_same(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (5, 17)
    lengths = generator.integers(1, 18, 5)
    mask = (np.arange(17) < lengths[:, None]) & (generator.random(shape) < 0.7)  # the rest are observations
    mask[np.arange(5), lengths - 1] = True
    rewards, values = generator.normal(size=shape) * mask, generator.normal(size=shape)
    for gamma, lam in ((1.0, 0.95), (0.97, 1.0), (0.9, 0.3), (1.0, 1.0)):
        wanted, returns = verl_gae(rewards, values, mask, gamma, lam)
        sequence = torch.from_numpy(np.nonzero(mask)[0])
        found = gae(torch.from_numpy(rewards[mask]), torch.from_numpy(values[mask]), sequence, gamma=gamma, lam=lam)
        np.testing.assert_allclose(found.advantage_N.numpy(), wanted[mask], rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(found.return_N.numpy(), returns[mask], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sample_has_its_advantages_bit_for_bit_whatever_is_packed_beside_it(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.tensor([1, 40, 3, 7, 130, 2])
    sequence = torch.repeat_interleave(torch.tensor([5, 3, 0, 1, 2, 9]), tokens)
    reward, value = torch.randn(2, len(sequence), dtype=dtype, generator=generator).unbind()
    whole = gae(reward, value, sequence, gamma=0.99, lam=0.95)
    for sample in sequence.unique():
        mine = sequence == sample
        alone = gae(reward[mine], value[mine], sequence[mine], gamma=0.99, lam=0.95)
        assert torch.equal(alone.advantage_N, whole.advantage_N[mine])
        assert torch.equal(alone.return_N, whole.return_N[mine]) and alone.return_N.dtype == dtype


def test_16_thousand_tokens_are_added_up_as_exactly_as_one_by_one() -> None:
    count = 16_384
    reward, value = torch.randn(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).unbind()
    found = gae(reward, value, torch.zeros(count, dtype=torch.int64), gamma=1.0, lam=0.99)
    delta = (reward + torch.cat([value[1:], doubles(0)]) - value).tolist()
    last = 0.0
    for t in reversed(range(count)):
        last = delta[t] + 0.99 * last
        delta[t] = last
    torch.testing.assert_close(found.advantage_N, doubles(*delta), rtol=1e-10, atol=1e-11)


def test_estimates_are_constants() -> None:
    value = doubles(1, 2).requires_grad_()
    found = gae(doubles(0, 1), value, torch.zeros(2, dtype=torch.int64), gamma=1.0, lam=1.0)
    assert not found.advantage_N.requires_grad and not found.return_N.requires_grad


def test_whitening_by_hand_as_verl_and_the_same_from_any_parts() -> None:
    values = doubles(1, 2, 3, 6)
    mean, variance = mean_and_variance(moments(values))
    assert float(mean) == 3 and float(variance) == pytest.approx(14 / 3)
    found = whitened(values, moments(values))
    assert found.tolist() == pytest.approx([(v - 3) / math.sqrt(14 / 3 + 1e-8) for v in (1, 2, 3, 6)])
    parts = moments(values[2:]) + moments(values[:0]) + moments(values[:2])
    torch.testing.assert_close(whitened(values, parts), found, rtol=1e-14, atol=0)
    assert whitened(values.float(), parts).dtype == torch.float32


def test_whitening_of_one_of_none_and_of_equal_values_is_finite() -> None:
    for values in (doubles(5), doubles(), doubles(0.1, 0.1, 0.1)):
        found = whitened(values, moments(values))
        assert found.isfinite().all() and found.abs().sum() < 1e-6
    far = 1e6 + doubles(-1, 0, 1)
    assert whitened(far, moments(far)).tolist() == pytest.approx([-1, 0, 1], abs=1e-3)


def test_value_loss_by_hand() -> None:
    """Old value 1, clip 1/2: a value of 3 counts as 1.5. The larger error of the two is trained."""
    value, old, returns = doubles(3, 3, 1.2, -1), doubles(1, 1, 1, 1), doubles(2, 4, 2, 0)
    loss, clipped = value_loss(value, old, returns, clip=0.5)
    assert loss.tolist() == pytest.approx([0.5, 2.5**2 / 2, 0.32, 0.5])
    assert clipped.tolist() == [False, True, False, False]
    free, never = value_loss(value, old, returns, clip=None)
    assert free.tolist() == pytest.approx([0.5, 0.5, 0.32, 0.5]) and not never.any()


def test_value_loss_is_verls_and_its_gradient_goes_to_the_return_or_nowhere() -> None:
    generator = torch.Generator().manual_seed(3)
    value, old, returns = torch.randn(3, 200, dtype=torch.float64, generator=generator).unbind()
    given = value.clone().requires_grad_()
    loss, clipped = value_loss(given, old, returns, clip=0.2)
    v, o, r = (x.numpy() for x in (value, old, returns))
    wanted = 0.5 * np.maximum((v - r) ** 2, (np.clip(v, o - 0.2, o + 0.2) - r) ** 2)
    np.testing.assert_allclose(loss.detach().numpy(), wanted, rtol=1e-14)
    (gradient,) = torch.autograd.grad(loss.sum(), given)
    assert torch.equal(gradient == 0, clipped) and clipped.any()
    assert torch.equal(gradient[~clipped].sign(), (value - returns)[~clipped].sign())
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, returns, clip=0.2)[0], (given,))
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, returns, clip=None)[0], (given,))


def test_explained_variance() -> None:
    returns = doubles(1, 2, 3, 6)
    of = lambda value: float(explained_variance(moments(returns), moments(returns - value)))  # noqa: E731
    assert of(returns) == 1 and of(returns + 7) == pytest.approx(1)
    assert of(torch.full_like(returns, 3)) == 0
    assert of(-returns) == pytest.approx(-3)
    same = doubles(2, 2)
    assert float(explained_variance(moments(same), moments(same - doubles(0, 1)))) == 0
