"""The weight of the entropy by hand: it grows while tokens are too certain, and acts only then."""

import math

import pytest

from lifecycle.errors import UserError
from lifecycle.losses.policy.entropy import AdaptiveEntropy

RULE = AdaptiveEntropy(target=0.2, delta=0.005, most=0.012)


def test_it_grows_below_the_target_falls_above_it_and_acts_below_it_alone() -> None:
    coefficient, seen = 0.0, []
    for entropy in (0.3, 0.1, 0.2, 0.15, 0.25, 0.1, 0.3, 0.3, 0.3):
        seen.append((RULE.weight(coefficient, entropy), coefficient))
        coefficient = RULE.adapted(coefficient, entropy)
    weights, coefficients = zip(*seen, strict=True)
    assert coefficients == pytest.approx([0, 0, 0.005, 0.01, 0.012, 0.007, 0.012, 0.007, 0.002])
    assert weights == pytest.approx([0, 0, 0.005, 0.01, 0, 0.007, 0, 0, 0])


def test_no_number_moves_it_downwards_and_has_no_weight() -> None:
    """A step without tokens has no entropy."""
    assert RULE.adapted(0.01, math.nan) == pytest.approx(0.005) and RULE.weight(0.01, math.nan) == 0


@pytest.mark.parametrize("changed", [{"target": 0.0}, {"delta": 0.0}, {"most": -1.0}])
def test_what_cannot_move_is_refused(changed: dict[str, float]) -> None:
    with pytest.raises(UserError, match="wanted all above 0"):
        AdaptiveEntropy(**{"target": 0.2, "delta": 0.005, "most": 1.0, **changed})
