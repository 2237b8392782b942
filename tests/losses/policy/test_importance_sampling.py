"""Policy gradient on sampled tokens: by hand, and in the mean over samples the gradient of the reverse divergence."""

import math

import pytest
import torch
from torch.nn import functional as F

from lifecycle.losses.policy.objectives import importance_sampling, teacher_advantage


def test_by_hand() -> None:
    logp = torch.tensor([0.5, 0.2], dtype=torch.float64).log().requires_grad_()
    sampler = torch.tensor([0.5, 0.4], dtype=torch.float64).log()
    advantage = teacher_advantage(torch.tensor([0.25, 0.8], dtype=torch.float64).log(), sampler)
    assert advantage.tolist() == pytest.approx([math.log(0.5), math.log(2)])
    loss = importance_sampling(logp, sampler, advantage)
    assert loss.item() == pytest.approx(-(math.log(0.5) + 0.5 * math.log(2)))
    (slope,) = torch.autograd.grad(loss, logp)
    assert slope.tolist() == pytest.approx([-math.log(0.5), -0.5 * math.log(2)])
    assert torch.autograd.gradcheck(lambda logp: importance_sampling(logp, sampler, advantage), (logp,))


@pytest.mark.parametrize("off", [0.0, 0.7], ids=["on policy", "another sampler"])
def test_its_mean_over_samples_is_the_gradient_of_the_reverse_divergence(off: float) -> None:
    """Also where another distribution drew the tokens: the ratio corrects for it."""
    torch.manual_seed(0)
    z, teacher = torch.randn(9, dtype=torch.float64, requires_grad=True), torch.randn(9, dtype=torch.float64)
    p, q = F.log_softmax(z, -1), F.log_softmax(teacher, -1)
    drawn = F.log_softmax(z.detach() + off * torch.randn(9, dtype=torch.float64), -1)
    terms = [
        drawn[i].exp() * importance_sampling(p[i : i + 1], drawn[i : i + 1], teacher_advantage(q, p)[i : i + 1])
        for i in range(9)
    ]
    (mean,) = torch.autograd.grad(torch.stack(terms).sum(), z, retain_graph=True)
    (wanted,) = torch.autograd.grad((p.exp() * (p - q)).sum(), z)
    torch.testing.assert_close(mean, wanted, rtol=1e-10, atol=1e-12)
