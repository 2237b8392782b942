"""Losses of reward models: by hand, at their limits, by the signs of their gradients, and against TRL."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifecycle.losses.ranking import bradley_terry, centring

TRL = json.loads((Path(__file__).parent / "parity/trl_ranking.json").read_text())
NAN = float("nan")


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_values_worked_by_hand() -> None:
    chosen, rejected = doubles(1.0, -0.5, 2.0), doubles(-0.5, 1.0, 2.0)
    found = bradley_terry(chosen, rejected)
    # ln(1 + e^-1.5), ln(1 + e^1.5), ln 2
    assert found.tolist() == pytest.approx([0.2014132779827524, 1.7014132779827524, math.log(2)], abs=1e-15)
    margins = doubles(1.5, NAN, 1.0)  # 1.5 - 1.5 = 0; not given; 0 - 1
    found = bradley_terry(chosen, rejected, margins)
    assert found.tolist() == pytest.approx([math.log(2), 1.7014132779827524, 1.3132616875182228], abs=1e-15)
    assert centring(chosen, rejected).tolist() == [0.25, 0.25, 16.0]


def test_equal_scores_give_log_2_and_sure_ones_nothing_or_their_difference() -> None:
    same = doubles(-7.0, 0.0, 1e3)
    assert bradley_terry(same, same).tolist() == pytest.approx([math.log(2)] * 3, abs=1e-15)
    assert bradley_terry(doubles(1e3), doubles(-1e3)).tolist() == [0.0]
    assert bradley_terry(doubles(-1e3), doubles(1e3)).tolist() == [2e3]  # finite, and linear
    assert centring(doubles(3.0), doubles(-3.0)).tolist() == [0.0]


def test_what_all_scores_have_in_common_counts_in_centring_alone() -> None:
    chosen, rejected = doubles(0.3, -1.0), doubles(0.1, 0.4)
    torch.testing.assert_close(bradley_terry(chosen + 5, rejected + 5), bradley_terry(chosen, rejected))
    assert (centring(chosen + 5, rejected + 5) > centring(chosen, rejected)).all()


def test_gradients_raise_the_chosen_score_lower_the_rejected_one_and_draw_their_sum_to_0() -> None:
    chosen, rejected = (doubles(0.5, 0.5, -2.0).requires_grad_(), doubles(0.0, 2.0, -2.0).requires_grad_())
    for margins in (None, doubles(1.0, NAN, 0.0)):
        up, down = torch.autograd.grad(bradley_terry(chosen, rejected, margins).sum(), (chosen, rejected))
        assert (up < 0).all() and (down > 0).all()
        torch.testing.assert_close(up, -down)
    both = torch.autograd.grad(centring(chosen, rejected).sum(), (chosen, rejected))
    for gradient in both:
        assert torch.equal(gradient.sign(), (chosen + rejected).sign())


def test_gradcheck() -> None:
    scores = [torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    inputs = [one.requires_grad_() for one in scores]
    margins = doubles(0.5, NAN, 0.0, 2.0)
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry(c, r, margins), inputs)
    assert torch.autograd.gradcheck(centring, inputs)


def test_a_pair_has_its_value_whatever_stands_beside_it() -> None:
    generator = torch.Generator().manual_seed(3)
    chosen, rejected, margins = torch.randn(3, 6, dtype=torch.float64, generator=generator).unbind()
    margins[2] = NAN
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    whole = bradley_terry(chosen, rejected, margins)
    assert torch.equal(bradley_terry(chosen[order], rejected[order], margins[order]), whole[order])
    apart = [bradley_terry(chosen[k : k + 2], rejected[k : k + 2], margins[k : k + 2]) for k in (0, 2, 4)]
    assert torch.equal(torch.cat(apart), whole)


def test_scores_may_have_another_dtype_than_margins() -> None:
    found = bradley_terry(torch.tensor([1.0]), torch.tensor([0.0]), doubles(0.5))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("case", TRL["cases"], ids=lambda case: f"{case['margin']}-{case['centring']}")
def test_trl_gives_the_same_loss_and_gradient(case: dict[str, Any]) -> None:
    scores = doubles(*TRL["scores"]).requires_grad_()
    chosen, rejected = scores.chunk(2)
    losses = bradley_terry(chosen, rejected, doubles(*TRL["margins"]) if case["margin"] else None)
    loss = (losses + (case["centring"] or 0.0) * centring(chosen, rejected)).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(case["loss"], rel=1e-12)
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx(case["gradient"], rel=1e-10, abs=1e-14)
