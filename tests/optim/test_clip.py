"""Laws of clipping: torch's own answer, one vector over all gradients, hands off what is not finite."""

import math

import pytest
import torch
from torch import Tensor, nn

from lifecycle.optim import clip_gradients


def parameters(*gradients: list[float] | None) -> list[Tensor]:
    made: list[Tensor] = []
    for gradient in gradients:
        made.append(nn.Parameter(torch.zeros(len(gradient or [0.0]))))
        made[-1].grad = None if gradient is None else torch.tensor(gradient)
    return made


def gradients(parameters: list[Tensor]) -> list[list[float] | None]:
    return [None if p.grad is None else p.grad.tolist() for p in parameters]


def test_the_norm_is_that_of_all_gradients_as_one_vector() -> None:
    many = parameters([3.0, 0.0], None, [0.0, 4.0])
    assert clip_gradients(many, 10.0).item() == 5.0
    assert gradients(many) == [[3.0, 0.0], None, [0.0, 4.0]]
    clip_gradients(many, 1.0)
    assert torch.cat([p.grad for p in many if p.grad is not None]).norm().item() == pytest.approx(1.0, rel=1e-6)


def test_no_limit_measures_only() -> None:
    many = parameters([30.0], [40.0])
    assert clip_gradients(many, None).item() == 50.0
    assert gradients(many) == [[30.0], [40.0]]


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 100.0])
def test_parity_with_torch(max_norm: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.zeros(5, 7)) for _ in range(9)]
    theirs = [nn.Parameter(torch.zeros(5, 7)) for _ in range(9)]
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn(5, 7, generator=generator)
        b.grad = a.grad.clone()
    norm = clip_gradients(ours, max_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, max_norm))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_touches_no_gradient(bad: float) -> None:
    many = parameters([bad, 1.0], [2.0])
    assert not clip_gradients(many, 1.0).isfinite()
    assert str(gradients(many)) == str([[bad, 1.0], [2.0]])


def test_gradients_too_large_to_square_in_fp32_are_still_clipped() -> None:
    many = parameters([1e25], [1e25])
    assert clip_gradients(many, 1.0).item() == pytest.approx(math.sqrt(2) * 1e25)
    assert many[0].grad is not None and many[0].grad.item() == pytest.approx(math.sqrt(0.5))


def test_without_any_gradient_the_norm_is_zero() -> None:
    assert clip_gradients(parameters(None), 1.0).item() == 0.0
