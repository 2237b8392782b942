"""Weights as functions of progress: their ends, their jumps, and what is refused."""

from typing import Any

import pytest

from lifecycle.data.mixture.weight import Weight
from lifecycle.errors import UserError


@pytest.mark.parametrize(
    ("value", "shares"),
    [
        (0.3, (0.3, 0.3, 0.3)),
        ({"start": 1, "end": 0}, (1.0, 0.5, 0.0)),
        ({"start": 1, "end": 0, "shape": "cosine"}, (1.0, 0.5, 0.0)),
        ({"start": 0.2, "end": 0.6, "shape": "cosine"}, (0.2, 0.4, 0.6)),
        ({"table": {0: 1, 0.5: 0.25, 1: 3}}, (1.0, 0.25, 3.0)),
    ],
)
def test_ends_and_middle(value: Any, shares: tuple[float, ...]) -> None:
    weight = Weight.of(value, "w")
    assert tuple(weight.at(p) for p in (0.0, 0.5, 1.0)) == pytest.approx(shares)


def test_a_cosine_is_flat_at_its_ends() -> None:
    weight = Weight.of({"start": 1, "end": 0, "shape": "cosine"}, "w")
    assert weight.at(0.1) > 0.97 and weight.at(0.9) < 0.03


def test_a_table_jumps_at_the_steps_where_its_weight_is_another() -> None:
    weight = Weight.of({"table": {0: 1, 0.3: 2, 0.5: 3}}, "w")
    for total in (2, 10, 11, 101):
        values = [weight.at(step / (total - 1)) for step in range(total)]
        assert (
            weight.jumps(total) == sorted({next(s for s, v in enumerate(values) if v >= wanted) for wanted in (2, 3)})
            or len(set(weight.jumps(total))) < 2
        )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-1.0, "weights are positive"),
        ({"start": 1}, "wanted a number"),
        ({"table": {0.2: 1}}, "begins at 0.2"),
        ({"table": {0: 1, 2: 1}}, "ends at 2"),
        ({"start": 1, "end": 0, "shape": "spiral"}, "choose linear or cosine"),
        ({"table": {0: 1, 0.5: -1}}, "weights are positive"),
    ],
)
def test_what_no_mixture_could_follow_is_refused(value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Weight.of(value, "data.sources.a.weight")
