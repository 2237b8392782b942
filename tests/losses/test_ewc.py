"""EWC: the Fisher of a model whose gradients are known, the penalty by hand, and its gradient by autograd."""

import pytest
import torch
from torch.nn import functional as F

from lifecycle.losses.ewc import add_ewc_gradients, diagonal_fisher


def test_the_fisher_of_a_softmax_regression_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (7,), generator=generator)

    def log_likelihood(index: int) -> torch.Tensor:
        return F.log_softmax(weight @ x[index], 0)[y[index]]

    (fisher,) = diagonal_fisher([weight], range(7), log_likelihood)
    p = torch.softmax(x @ weight.detach().T, 1)
    known = ((F.one_hot(y, 4) - p)[:, :, None] * x[:, None, :]).square().mean(0)
    torch.testing.assert_close(fisher, known, rtol=1e-12, atol=1e-14)
    assert weight.grad is None


def test_two_sequences_are_squared_before_they_are_added() -> None:
    weight = torch.tensor([2.0], requires_grad=True)
    (fisher,) = diagonal_fisher([weight], [3.0, -3.0], lambda slope: weight.sum() * slope)
    assert fisher.tolist() == [9.0]  # the mean gradient is 0


def test_the_penalty_by_hand() -> None:
    weight = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    weight.grad = torch.tensor([1.0, 1.0, 1.0])
    anchor, fisher = torch.tensor([0.0, -1.0, 0.5]), torch.tensor([2.0, 4.0, 9.0])
    # 0.5 * 0.1 * (2 * 1 + 4 * 1 + 9 * 0) = 0.3;  gradient 0.1 * F * (w - a) = (0.2, -0.4, 0)
    penalty = add_ewc_gradients([weight], [anchor], [fisher], strength=0.1)
    assert penalty.item() == pytest.approx(0.3)
    assert weight.grad.tolist() == pytest.approx([1.2, 0.6, 1.0])


def test_the_gradient_is_autograds() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    anchors = [torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    fisher = [torch.rand(3, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    penalty = sum((f * (w - a).square()).sum() for w, a, f in zip(weights, anchors, fisher, strict=True)) * 0.35
    assert isinstance(penalty, torch.Tensor)
    wanted = torch.autograd.grad(penalty, weights)
    found = add_ewc_gradients(weights, anchors, fisher, strength=0.7)
    assert found.item() == pytest.approx(penalty.item(), rel=1e-6)
    for weight, grad in zip(weights, wanted, strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, grad)
