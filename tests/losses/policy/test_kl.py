"""KL estimates: by hand, their means and the means of their gradients over a whole vocabulary, clamps; adaptation."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.errors import UserError
from lifecycle.losses.policy.kl import AdaptiveKl, KlName, kl

KINDS: tuple[KlName, ...] = get_args(KlName)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slope(kind: KlName, logp: Tensor, reference: Tensor, old: Tensor) -> Tensor:
    given = logp.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(kl(given, reference, kind=kind, old_logp_N=old).sum(), given)
    return found


def test_values_and_slopes_worked_by_hand() -> None:
    """u = 1/2 and r = 2: e^-u + u - 1 = e^-0.5 - 0.5."""
    logp, reference, old = doubles(-1.0), doubles(-1.5), doubles(-1.0 - math.log(2))
    excess = math.exp(-0.5) - 0.5
    wanted = {"k1": (0.5, 1), "k2": (0.125, 0.5), "k3": (excess, 1 - math.exp(-0.5)), "unbiased": (2 * excess, 1.0)}
    for kind in KINDS:
        assert float(kl(logp, reference, kind=kind, old_logp_N=old)) == pytest.approx(wanted[kind][0], rel=1e-14)
        assert float(slope(kind, logp, reference, old)) == pytest.approx(wanted[kind][1], rel=1e-14)


def test_the_slope_of_the_unbiased_one_is_r_u_and_at_r_1_that_of_k2() -> None:
    logp, reference, old = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    u = logp - reference
    torch.testing.assert_close(slope("unbiased", logp, reference, old), (logp - old).exp() * u, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope("unbiased", logp, reference, logp), slope("k2", logp, reference, logp))


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_reference_all_are_0_and_only_k1_has_a_slope(kind: KlName) -> None:
    logp = doubles(-0.3, -7)
    assert kl(logp, logp, kind=kind, old_logp_N=logp - 0.2).tolist() == [0, 0]
    assert slope(kind, logp, logp, logp - 0.2).tolist() == ([1, 1] if kind == "k1" else [0, 0])


def test_means_over_the_vocabulary() -> None:
    """Tokens drawn by p (k1, k3) or by anybody (unbiased) give KL(p, q); gradients: 0, KL(p, q), KL(q, p), KL(p, q)."""
    generator = torch.Generator().manual_seed(1)
    z, other, drawn = (torch.randn(7, dtype=torch.float64, generator=generator) for _ in range(3))
    z.requires_grad_()
    p, q, mu = (F.log_softmax(x, -1) for x in (z, other, drawn))
    forward, backward = (p.exp() * (p - q)).sum(), (q.exp() * (q - p)).sum()
    (to_q,), (from_q,) = (torch.autograd.grad(value, z, retain_graph=True) for value in (forward, backward))
    wanted = {"k1": torch.zeros_like(to_q), "k2": to_q, "k3": from_q, "unbiased": to_q}
    for kind in KINDS:
        by = mu if kind == "unbiased" else p.detach()
        mean = (by.exp() * kl(p, q, kind=kind, old_logp_N=by)).sum()
        if kind != "k2":
            assert float(mean.detach()) == pytest.approx(float(forward.detach()), rel=1e-12)
        (gradient,) = torch.autograd.grad(mean, z, retain_graph=True)
        torch.testing.assert_close(gradient, wanted[kind], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_and_constants(kind: KlName) -> None:
    """Nothing flows into the reference and the old policy."""
    made = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).unbind()
    logp, reference, old = (x.clone().requires_grad_() for x in made)
    assert torch.autograd.gradcheck(lambda logp: kl(logp, reference, kind=kind, old_logp_N=old), (logp,))
    grads = torch.autograd.grad(
        kl(logp, reference, kind=kind, old_logp_N=old).sum(), (logp, reference, old), allow_unused=True
    )
    assert [grad is None for grad in grads] == [False, True, True]


@pytest.mark.parametrize("kind", ["k3", "unbiased"])
def test_near_the_reference_fp32_keeps_its_digits(kind: KlName) -> None:
    """u of 1e-4: u^2 / 2 = 5e-9, which is less than the last digit of 1."""
    reference = torch.tensor([0.0, 0.0])
    found = kl(torch.tensor([1e-4, -1e-4]), reference, kind=kind, old_logp_N=torch.tensor([1e-4, -1e-4]))
    assert found.tolist() == pytest.approx([5e-9, 5e-9], rel=1e-2) and found.dtype == torch.float32


def test_clamps() -> None:
    logp = doubles(-50.0, -1, -1).requires_grad_()
    reference = doubles(-1, -50, -1.5)
    found = kl(logp, reference, kind="k3", clamp_log_ratio=20, clamp_value=10)
    assert found.tolist() == pytest.approx([10, 10, math.exp(-0.5) - 0.5])  # e^20 and 19, both cut to 10
    (gradient,) = torch.autograd.grad(found.sum(), logp)
    assert gradient.tolist()[:2] == [0, 0] and gradient[2] != 0
    assert kl(logp, reference, kind="k1", clamp_log_ratio=3).tolist() == [-3, 3, 0.5]
    assert kl(logp, reference, kind="k1", clamp_value=3).tolist() == [-3, 3, 0.5]
    with pytest.raises(ValueError, match="old_logp_N"):
        kl(logp, reference, kind="unbiased")


def test_the_coefficient_follows_the_target() -> None:
    one = AdaptiveKl(target=0.1, horizon=100)
    assert one.adapted(0.5, 0.11, samples=10) == pytest.approx(0.5 * (1 + 0.1 * 10 / 100))
    assert one.adapted(0.5, 0.1, samples=10) == 0.5
    assert one.adapted(0.5, 9.0, samples=10) == pytest.approx(0.5 * 1.02)  # no more than 0.2 of it
    assert one.adapted(0.5, 0.0, samples=10) == pytest.approx(0.5 * 0.98)
    assert one.adapted(0.5, -3.0, samples=10_000) == 0.0  # a step larger than the horizon never turns it round
    for wrong in ({"target": 0.0, "horizon": 100.0}, {"target": 0.1, "horizon": -1.0}):
        with pytest.raises(UserError, match="above 0"):
            AdaptiveKl(**wrong)
