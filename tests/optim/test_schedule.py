"""Laws of the schedules: corners, hand values, parity with transformers, lengths in three units."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_linear_schedule_with_warmup, get_wsd_schedule

from lifecycle.errors import UserError
from lifecycle.optim.schedule import Schedule, Turn, constant, falling, of_another_length, wsd

cosine, linear, sqrt = (partial(falling, shape=shape) for shape in ("cosine", "linear", "1-sqrt"))


def steps_of(size: int) -> Callable[[float], int]:
    """In steps of `size` tokens."""
    return lambda tokens: math.ceil(tokens / size)


@pytest.mark.parametrize("shape", [cosine, linear, sqrt])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("warmup", [0, 1, 2, 7])
def test_the_corners_of_cosine_and_linear(shape: type, total: int, warmup: int) -> None:
    if warmup > total:
        return
    factors = [shape(step, total=total, warmup=warmup, min_ratio=0.1) for step in range(total)]
    assert factors[0] == 1 / max(warmup, 1)
    assert factors[max(warmup, 1) - 1] == 1.0
    assert factors[-1] == (0.1 if total > max(warmup, 1) else 1.0)
    assert factors == sorted(factors[: max(warmup, 1)]) + sorted(factors[max(warmup, 1) :], reverse=True)
    assert shape(total + 5, total=total, warmup=warmup, min_ratio=0.1) == factors[-1]


def test_a_warm_up_may_begin_above_zero() -> None:
    assert [constant(s, warmup=4, start=0.2) for s in range(6)] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    made = Schedule(name="1-sqrt", min_ratio=0.1, warmup_start=0.1, warmup_steps=2).resolve(6, steps_of(1), steps_of(1))
    assert [made(s) for s in (0, 1, 2, 5)] == pytest.approx([0.55, 1.0, 0.1 + 0.9 * 0.5, 0.1])


def test_hand_values() -> None:
    # warm-up to step 1, then 8 steps of decay: step 5 is half-way
    assert [linear(s, total=10, warmup=2, min_ratio=0.0) for s in (0, 1, 5, 9)] == [0.5, 1.0, 0.5, 0.0]
    assert cosine(5, total=10, warmup=2, min_ratio=0.2) == pytest.approx(0.6)
    assert cosine(3, total=10, warmup=2, min_ratio=0.0) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert [constant(s, warmup=4) for s in (0, 1, 3, 99)] == [0.25, 0.5, 1.0, 1.0]


def test_wsd_is_at_the_peak_between_warmup_and_decay_and_ends_at_the_minimum() -> None:
    def factors(shape: str) -> list[float]:
        return [wsd(s, total=10, warmup=2, decay_steps=4, shape=shape, min_ratio=0.2) for s in range(10)]  # type: ignore[arg-type]

    for shape in ("linear", "cosine", "1-sqrt"):
        made = factors(shape)
        assert made[:6] == [0.5] + [1.0] * 5
        assert made[-1] == pytest.approx(0.2)
    assert factors("linear")[6:] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert factors("1-sqrt")[6] == pytest.approx(0.2 + 0.8 * 0.5)
    assert factors("cosine")[7] == pytest.approx(0.6)


def test_wsd_that_decays_at_once_is_the_other_schedule() -> None:
    for shape, same in (("linear", linear), ("cosine", cosine)):
        for step in range(12):
            made = wsd(step, total=10, warmup=3, decay_steps=7, shape=shape, min_ratio=0.1)  # type: ignore[arg-type]
            assert made == same(step, total=10, warmup=3, min_ratio=0.1)


@pytest.mark.parametrize("warmup", [1, 5])
def test_parity_with_transformers(warmup: int) -> None:
    """Their step 0 has rate 0 and does nothing: our step s is their step s + 1."""
    total, decay_steps = 40, 10
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)

    def theirs(scheduler: torch.optim.lr_scheduler.LambdaLR) -> list[float]:
        return [scheduler.lr_lambdas[0](step + 1) for step in range(total)]

    made = [cosine(s, total=total, warmup=warmup, min_ratio=0.1) for s in range(total)]
    assert made == pytest.approx(
        theirs(get_cosine_with_min_lr_schedule_with_warmup(sgd, warmup, total, min_lr_rate=0.1)), abs=1e-12
    )
    made = [linear(s, total=total, warmup=warmup, min_ratio=0.0) for s in range(total)]
    assert made == pytest.approx(theirs(get_linear_schedule_with_warmup(sgd, warmup, total)), abs=1e-12)
    for shape in ("linear", "cosine", "1-sqrt"):
        made = [
            wsd(s, total=total, warmup=warmup, decay_steps=decay_steps, shape=shape, min_ratio=0.1)
            for s in range(total)
        ]
        reference = get_wsd_schedule(
            sgd, warmup, decay_steps, num_training_steps=total, decay_type=shape, min_lr_ratio=0.1
        )
        # their warm-up for this one starts at the minimum, ours always at nothing
        assert made[warmup - 1 :] == pytest.approx(theirs(reference)[warmup - 1 :], abs=1e-12)


def test_the_three_units_of_a_length_are_the_same_schedule() -> None:
    lengths = (
        {"warmup_steps": 10, "decay_steps": 20},
        {"warmup_tokens": 10_000, "decay_tokens": 19_999},  # a part of a step is a step
        {"warmup_fraction": 0.1, "decay_fraction": 0.2},
    )
    made = []
    for given in lengths:
        rate = Schedule(name="wsd", min_ratio=0.0, **given).resolve(100, steps_of(1000), steps_of(1000))
        made.append([rate(step) for step in range(100)])
    assert made[0] == made[1] == made[2]
    assert made[0][9] == made[0][79] == 1.0 and made[0][8] == 0.9 and made[0][80] < 1.0


def test_resolve_gives_the_named_schedule() -> None:
    expected = {
        "cosine": cosine(50, total=100, warmup=5, min_ratio=0.1),
        "linear": linear(50, total=100, warmup=5, min_ratio=0.1),
        "constant": 1.0,
    }
    for name, factor in expected.items():
        made = Schedule(name=name, min_ratio=0.1, warmup_steps=5, decay_fraction=0.3)  # type: ignore[arg-type]
        assert made.resolve(100, steps_of(7), steps_of(7))(50) == factor


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"warmup_steps": 1, "warmup_tokens": 5},
            r"warmup_steps=1 and stage.schedule.warmup_tokens=5 are given together",
        ),
        ({}, "none of stage.schedule.warmup_steps, stage.schedule.warmup_tokens, .*warmup_fraction is given"),
        ({"name": "wsd", "warmup_steps": 1}, "none of stage.schedule.decay_steps"),
        ({"warmup_steps": 1, "name": "cosin"}, "name is 'cosin'; choose one of cosine, wsd"),
        ({"warmup_steps": 1, "decay_shape": "sqrt"}, "decay_shape is 'sqrt'; choose linear, cosine or 1-sqrt"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Schedule(**({"name": "cosine", "min_ratio": 0.1} | settings))


@pytest.mark.parametrize("name", ["cosine", "wsd"])
def test_a_warmup_longer_than_the_run_is_refused(name: str) -> None:
    schedule = Schedule(name=name, min_ratio=0.1, warmup_tokens=100_001, decay_steps=1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="asks for 101 steps of warm-up.*but the run has 100 steps"):
        schedule.resolve(100, steps_of(1000), steps_of(1000))


def course(
    steps: int, *, name: Any = "cosine", stretch: bool = False, warmup: int = 10, decay: int | None = None
) -> Any:
    schedule = Schedule(name=name, min_ratio=0.1, warmup_steps=warmup, decay_steps=decay, stretch=stretch)
    return schedule.course(steps, lambda tokens: int(tokens), lambda tokens: int(tokens))


def resumed(before: Any, after: Any, taken: int) -> tuple[Any, Any]:
    return after, after.restore(before.state(taken), taken)


def test_a_finished_run_that_goes_on_does_not_jump_back_to_the_peak() -> None:
    after, turn = resumed(course(100), course(200), 100)
    assert turn == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(course(200)(100)))
    assert course(200)(100) > 0.5
    assert [after(step) for step in (100, 150, 199)] == [pytest.approx(0.1)] * 3


def test_a_run_that_is_made_longer_on_the_way_never_rises_and_ends_at_the_new_end() -> None:
    after, turn = resumed(course(100), course(200), 50)
    factors = [after(step) for step in range(50, 200)]
    assert factors == sorted(factors, reverse=True) and factors[0] == turn[0] == course(100)(49)
    assert factors[-1] == pytest.approx(0.1) and factors[-40] == course(200)(160)


def test_with_the_word_the_schedule_is_that_of_the_new_length() -> None:
    after, turn = resumed(course(100), course(200, stretch=True), 100)
    assert [after(step) for step in range(100, 200)] == [course(200)(step) for step in range(100, 200)]
    assert turn[0] == pytest.approx(0.1) and turn[1] == turn[2] > 0.5
    held, _ = resumed(course(100), course(200), 100)
    freed, turn = resumed(held, course(200, stretch=True), 120)  # typed later
    assert turn is None and freed(120) == course(200)(120)


def test_a_rate_that_is_held_is_held_by_every_later_start() -> None:
    held, _ = resumed(course(100), course(200), 100)
    again, turn = resumed(held, course(200), 130)
    assert turn is None and again(130) == pytest.approx(0.1)
    longer, turn = resumed(again, course(400), 150)
    assert turn[0] == turn[1] == pytest.approx(0.1) and longer(399) == pytest.approx(0.1)


def test_where_nothing_jumps_nothing_is_held_or_said() -> None:
    stable, turn = resumed(course(100, name="wsd", decay=20), course(300, name="wsd", decay=20), 60)
    assert turn is None and stable(200) == 1.0 and stable(299) == pytest.approx(0.1)
    same, turn = resumed(course(100), course(100), 70)
    assert turn is None and same(70) == course(100)(70)


def test_a_warm_up_that_is_not_over_goes_on() -> None:
    after, turn = resumed(course(100, warmup=10), course(60, warmup=5), 4)
    assert turn[0] == pytest.approx(0.4) and after(5) == course(60, warmup=5)(5) > 0.9


def test_what_is_said_has_both_rates() -> None:
    said = of_another_length(Turn(0.1, 0.1, 0.48), 2e-3, 200)
    assert said == (
        "the run has 200 steps now: its rate stays at 2.00e-04, where the schedule of 200 steps has "
        "9.60e-04: stage.schedule.stretch=true takes that"
    )
    assert of_another_length(Turn(0.1, 0.48, 0.48), 2e-3, 200).endswith("goes on from 2.00e-04 at 9.60e-04")
