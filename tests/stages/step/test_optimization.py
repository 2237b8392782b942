"""The rate of every step, and what of it a checkpoint holds."""

from dataclasses import replace

import pytest
import torch
from tests.stages.test_step import ADAMW, LENGTH

from lifecycle.duration import Segment, Timeline
from lifecycle.optim import Muon, Schedule
from lifecycle.stages.step.optimization import Optimization, OptimizationKeys

EARLY, LATE = Segment(step=0, row_length=LENGTH, rows=1), Segment(step=4, row_length=LENGTH, rows=1, rate=0.5)
FALLING = Schedule(name="linear", min_ratio=0.0, warmup_steps=2)


def made(steps: int = 8, schedule: Schedule = FALLING) -> Optimization:
    optimizer = replace(ADAMW, lr=0.1, embedding_lr=0.3)
    keys = OptimizationKeys(optimizer=optimizer, schedule=schedule, max_skipped=0, max_norm_ratio=None)
    return Optimization(keys, Timeline(steps, (EARLY, LATE)))


def rates(optimization: Optimization, scale: float = 1.0, steps: int = 10) -> list[float]:
    return [optimization.set_rates([], step, scale=scale) for step in range(steps)]


def test_a_rate_is_peak_times_schedule_times_phase_times_what_a_guard_decided() -> None:
    wanted = [0.05, 0.1, 0.1 * 5 / 6, 0.1 * 4 / 6, 0.05 * 3 / 6, 0.05 * 2 / 6, 0.05 * 1 / 6, 0.0]
    assert rates(made(), steps=8) == pytest.approx(wanted)
    assert rates(made(), scale=0.25, steps=8) == pytest.approx([rate / 4 for rate in wanted])
    assert rates(made())[8:] == [0.0, 0.0]  # rows that come behind the planned end have its rate


def test_every_group_has_its_own_peak() -> None:
    optimization, model = (
        made(),
        torch.nn.ModuleDict({"embedding": torch.nn.Embedding(3, 2), "up": torch.nn.Linear(2, 2)}),
    )
    optimizer = optimization.build(model, None)
    assert optimization.set_rates(optimizer.param_groups, 2, scale=1.0) == pytest.approx(0.1 * 5 / 6)
    found = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert found["embedding"] == pytest.approx(0.3 * 5 / 6) and found["decay"] == pytest.approx(0.1 * 5 / 6)


def test_muons_momentum_follows_the_step_and_no_other_group_has_one() -> None:
    """From 0.5 to 0.9 in half of eight steps; past the planned end it stays, as it does in a run that begins there."""
    spec = Muon(
        lr=0.1, adamw_lr=None, embedding_lr=None, weight_decay=0.0, momentum=0.9, nesterov=True, newton_schulz_steps=5,
        scale="original", betas=(0.9, 0.95), eps=1e-8, grad_clip=None, momentum_start=0.5, momentum_rise=0.5,
    )  # fmt: skip
    keys = OptimizationKeys(optimizer=spec, schedule=FALLING, max_skipped=0, max_norm_ratio=None)
    optimization = Optimization(keys, Timeline(8, (EARLY, LATE)))
    optimizer = optimization.build(torch.nn.Linear(2, 2), None)
    muon, vectors = optimizer.param_groups
    found = []
    for step in (0, 1, 2, 3, 4, 7, 9):
        optimization.set_rates(optimizer.param_groups, step, scale=1.0)
        found.append(muon["momentum"])
    assert found == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9]) and "momentum" not in vectors


def test_it_goes_on_where_it_was_and_says_so_where_the_run_has_another_length() -> None:
    first, cpu = made(), torch.device("cpu")
    first.skipping.skipped = 3
    state = first.state(taken=5)
    same, longer = made(), made(steps=16)
    assert same.restore(state, 5, cpu) is None and same.skipping.skipped == 3 and rates(same) == rates(first)
    said = longer.restore(state, 5, cpu)
    assert said is not None and said.startswith("the run has 16 steps now")
    assert longer.set_rates([], 5, scale=1.0) <= first.set_rates([], 4, scale=1.0)
    older = {"skipping": state["skipping"]}  # a checkpoint from before schedules had a state
    assert made(steps=16).restore(older, 5, cpu) is None
