"""Which steps are not taken: the running mean by hand, spikes, and an exact state."""

from typing import Any

import pytest
import torch

from lifecycle.batch import Cursor, StepBatch
from lifecycle.errors import UserError
from lifecycle.stages.step.bad_steps import SETTLED, WINDOW, Skipping

LOSS = torch.tensor(2.0)


def settled(norm: float = 1.0, **changes: Any) -> Skipping:
    made = Skipping(**({"max_skipped": 1, "max_norm_ratio": 5.0} | changes))
    for _ in range(SETTLED):
        assert not made.bad(torch.tensor(norm), LOSS)
        made.take(torch.tensor(norm))
    return made


def test_the_mean_is_that_of_all_steps_and_then_of_the_last() -> None:
    made = Skipping(max_skipped=0, max_norm_ratio=None)
    for norm in (3.0, 5.0, 10.0):
        made.take(torch.tensor(norm))
    assert float(made.mean) == 6.0
    made.taken = 10 * WINDOW
    made.take(torch.tensor(6.0 + WINDOW))
    assert float(made.mean) == 7.0


def test_a_spike_is_more_than_so_many_times_the_mean_and_only_once_that_has_settled() -> None:
    young = Skipping(max_skipped=0, max_norm_ratio=5.0)
    young.take(torch.tensor(1.0))
    assert not young.bad(torch.tensor(1e6), LOSS)
    made = settled(2.0)
    assert not made.bad(torch.tensor(10.0), LOSS)
    assert made.bad(torch.tensor(10.01), LOSS)
    assert not settled(2.0, max_norm_ratio=None).bad(torch.tensor(1e6), LOSS)


def test_steps_without_a_gradient_make_no_spikes_of_the_others() -> None:
    made, said = Skipping(max_skipped=3, max_norm_ratio=5.0), list[str]()
    for _ in range(2 * SETTLED):
        made.take(torch.tensor(0.0))
    assert not made.bad(torch.tensor(1.0), LOSS) and int(made.taken) == 0
    batch: StepBatch[Any] = StepBatch(step=6, micro=[], cursor=Cursor(step=7, streams={0: {}}))
    made.skip(batch, torch.tensor(1.0), torch.tensor(torch.nan), say=said.append)
    assert "gradient norm 1.0; data" in said[0]
    rare = settled(2.0)
    for _ in range(WINDOW):
        rare.take(torch.tensor(0.0))
    assert float(rare.mean) == 2.0 and not rare.bad(torch.tensor(10.0), LOSS) and rare.bad(torch.tensor(10.01), LOSS)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_bad_from_the_first_step(value: float) -> None:
    made = Skipping(max_skipped=0, max_norm_ratio=None)
    assert made.bad(torch.tensor(value), LOSS) and made.bad(LOSS, torch.tensor(value))
    assert not made.bad(LOSS, LOSS)


def test_skipped_steps_are_said_counted_and_too_many_end_the_run() -> None:
    made, said = settled(), list[str]()
    batch: StepBatch[Any] = StepBatch(step=6, micro=[], cursor=Cursor(step=7, streams={0: {}, 3: {}}))
    made.skip(batch, torch.tensor(8.0), LOSS, say=said.append)
    assert said == [
        "step 7 skipped: loss 2.0, gradient norm 8.0, 8.0 times the usual; data: rows of step 6 of streams 0-3 "
        "(1 of at most 1 skipped)"
    ]
    with pytest.raises(UserError, match="more than stage.max_skipped=1"):
        made.skip(batch, torch.tensor(torch.nan), LOSS, say=said.append)
    assert len(said) == 2


def test_the_state_goes_on_bit_for_bit() -> None:
    norms = (torch.rand(50, generator=torch.Generator().manual_seed(1)) + 0.1).tolist()
    whole, first = settled(0.3), settled(0.3)
    for norm in norms[:20]:
        first.take(torch.tensor(norm))
    second = Skipping(max_skipped=1, max_norm_ratio=5.0)
    second.restore(first.state(), torch.device("cpu"))
    for norm in norms:
        whole.take(torch.tensor(norm))
    for norm in norms[20:]:
        second.take(torch.tensor(norm))
    assert second.state() == whole.state()
