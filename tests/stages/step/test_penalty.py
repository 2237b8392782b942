"""A penalty on the weights: made once, added to every step, and in the checkpoint."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.stages.test_step import optimization, saved, stage
from torch import Tensor

from lifecycle.stages.midtrain import Ewc, Midtrain
from lifecycle.stages.step.penalty import EwcPenalty

NO_ROWS: Any = SimpleNamespace()
"""The data of a run that nobody should ask for rows."""


def midtrain() -> Midtrain:
    """On the toy model of the step's tests, with an EWC penalty."""
    made = stage()
    return Midtrain(
        model=made.config,
        optimization=optimization(),
        z_loss=0.0,
        ewc=Ewc(strength=1.0, rows=1),
        setup=made.setup_facts,
    )


def linear(weight: Tensor, strength: float = 0.5) -> tuple[EwcPenalty, Any]:
    """Log-likelihoods weight * row, so the Fisher information is the mean of the rows' squares."""
    penalty = EwcPenalty(strength=strength, rows=2, log_likelihood=lambda row: (weight * row).sum())  # type: ignore[operator]
    return penalty, SimpleNamespace(replayed_rows=lambda count: [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])])


def test_it_pulls_back_to_the_weights_that_the_run_began_with_by_the_mean_square_of_their_gradients() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    penalty, feed = linear(weight)
    penalty.begin([weight], feed)
    with torch.no_grad():
        weight.add_(torch.tensor([2.0, 1.0]))
    weight.grad = torch.tensor([1.0, 1.0])
    value = penalty.gradients([weight])
    assert float(value) == pytest.approx(0.5 / 2 * (5 * 4 + 2 * 1))  # fisher [(1 + 9) / 2, (4 + 0) / 2]
    assert weight.grad.tolist() == pytest.approx([1 + 0.5 * 5 * 2, 1 + 0.5 * 2 * 1])


def test_what_is_restored_is_not_made_again() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    first, feed = linear(weight)
    assert first.state() is None
    first.begin([weight], feed)
    state = first.state()
    assert state is not None
    second, _ = linear(weight)
    second.restore(state)
    with torch.no_grad():
        weight.add_(1.0)
    second.begin([weight], NO_ROWS)
    assert torch.equal(first.gradients([weight]), second.gradients([weight]))


@pytest.mark.parametrize("older", [False, True])
def test_a_loaded_penalty_goes_where_the_run_trains_also_from_checkpoints_of_before(older: bool) -> None:
    found, parts = saved(1), ([torch.ones(2)], [torch.full((2,), 2.0)])
    found["stage"] |= {"springs": list(parts)} if older else {"penalty": {"anchors": parts[0], "fisher": parts[1]}}
    made = midtrain()
    made.configure_model()
    made.on_load_checkpoint(found)
    assert made.penalty is not None
    made.penalty.begin([torch.ones(2, device="meta")], NO_ROWS)
    state = made.penalty.state()
    assert state is not None
    assert {name: part[0].device.type for name, part in state.items()} == {"anchors": "meta", "fisher": "meta"}
