"""Laws of Muon: orthogonal updates of a known size, torch's own answer."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from lifecycle.optim import Muon
from lifecycle.optim.muon import QUINTIC, orthogonalise, update_scale


def muon(**changed: Any) -> Muon:
    settings: dict[str, Any] = {
        "lr": 2e-2,
        "adamw_lr": 1e-2,
        "embedding_lr": 3e-2,
        "weight_decay": 0.1,
        "momentum": 0.95,
        "nesterov": True,
        "newton_schulz_steps": 5,
        "scale": "match_rms_adamw",
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "grad_clip": 1.0,
    }
    return Muon(**(settings | changed))


@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_muon_agrees_with_torchs(scale: str, shape: tuple[int, int]) -> None:
    """Theirs multiplies in bf16, ours on a CPU in fp32: equal up to bf16's three digits in the sum of five updates."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Linear(shape[1], shape[0], bias=False), nn.Linear(shape[1], shape[0], bias=False)
    for model in (ours, theirs):
        model.weight.data.copy_(start)
    one = muon(scale=scale).build(ours)
    two = torch.optim.Muon([theirs.weight], lr=2e-2, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn=scale)
    for _ in range(5):
        ours.weight.grad = torch.randn(shape, generator=generator)
        theirs.weight.grad = ours.weight.grad.clone()
        one.step()
        two.step()
    ours_moved, theirs_moved = ours.weight.detach() - start, theirs.weight.detach() - start
    assert (ours_moved - theirs_moved).norm() < 0.02 * theirs_moved.norm()


def test_newton_schulz_keeps_singular_vectors_and_maps_values_by_its_quintic() -> None:
    """In float64: U diag(s) V' goes to U diag(p(...p(s / |s|)...)) V' with p the odd quintic, all near 1."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(48, 32, generator=generator, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    a, b, c = QUINTIC
    values = s / s.norm()
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    made = orthogonalise(matrix, steps=5)
    torch.testing.assert_close(made, u @ torch.diag(values) @ vt, rtol=1e-10, atol=1e-10)
    assert 0.68 < values.min() and values.max() < 1.14
    torch.testing.assert_close(orthogonalise(matrix.mT, steps=5), made.mT)
    torch.testing.assert_close(orthogonalise(1e3 * matrix, steps=5), made)


def test_a_zero_gradient_gives_a_zero_direction() -> None:
    assert not orthogonalise(torch.zeros(4, 3), steps=5).any()


def test_update_scales_by_hand() -> None:
    assert update_scale(torch.Size((400, 100)), "match_rms_adamw") == pytest.approx(0.2 * 20)
    assert update_scale(torch.Size((400, 100)), "original") == 2.0
    assert update_scale(torch.Size((100, 400)), "original") == 1.0


def test_with_match_rms_an_update_is_as_large_as_adamws() -> None:
    """RMS of an orthogonal M x N is 1 / sqrt(max(M, N)), times 0.2 sqrt(max(M, N)): 0.2 of the rate."""
    layer = nn.Linear(64, 256, bias=False)
    before = layer.weight.detach().clone()
    optimizer = muon(weight_decay=0.0).build(layer)
    layer.weight.grad = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    rms = (layer.weight.detach() - before).square().mean().sqrt().item()
    assert rms == pytest.approx(0.2 * 2e-2, rel=0.2)


def test_muon_by_hand_on_a_diagonal() -> None:
    """One number is its own polar factor: momentum 0.5 of gradient 1 is 0.5, any positive U gives NS(U) near 1."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(2.0)
    optimizer = muon(scale="original", lr=0.1, weight_decay=0.5, momentum=0.5, newton_schulz_steps=1).build(layer)
    layer.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * sum(QUINTIC))
    assert optimizer.state[layer.weight]["momentum"].item() == 0.5


def test_momentum_rises_evenly_from_its_start_and_stays() -> None:
    """From 0.85 to 0.95 in 0.4 of the run: 0.875 after a tenth, 0.95 from 0.4 on."""
    rising = muon(momentum_start=0.85, momentum_rise=0.4)
    assert [rising.momentum_at(x) for x in (0.0, 0.1, 0.4, 1.0)] == pytest.approx([0.85, 0.875, 0.95, 0.95])
    assert muon(momentum_start=0.85, momentum_rise=0.0).momentum_at(0.0) == muon().momentum_at(0.0) == 0.95


def test_without_nesterov_the_momentum_is_not_overwritten() -> None:
    layer = nn.Linear(3, 2, bias=False)
    optimizer = muon(nesterov=False).build(layer)
    layer.weight.grad = torch.full((2, 3), 4.0)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[layer.weight]["momentum"], torch.full((2, 3), 4.0 * 0.05))


def test_a_closure_is_run_with_gradients() -> None:
    layer = nn.Linear(2, 2, bias=False)
    optimizer = muon().build(layer)

    def closure() -> float:
        loss = layer(torch.ones(1, 2)).sum()
        loss.backward()
        return loss.item()

    before = layer.weight.detach().clone()
    assert math.isfinite(optimizer.step(closure) or math.nan)
    assert not torch.equal(layer.weight, before)


def test_stacked_experts_are_made_orthogonal_one_by_one() -> None:
    stack = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stack[1] = 0.0  # an expert that no token visited
    found = orthogonalise(stack, steps=5)
    for expert in range(3):
        torch.testing.assert_close(found[expert], orthogonalise(stack[expert], steps=5))
    assert bool((found[1] == 0).all())
    assert update_scale(stack.shape, "match_rms_adamw") == update_scale(stack[0].shape, "match_rms_adamw")
