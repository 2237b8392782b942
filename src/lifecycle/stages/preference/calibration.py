"""How far the certainty of a reward model can be believed: of pairs by how sure it is of the better answer.

    certainty of a pair        sigmoid(|r_chosen - r_rejected|), from 0.5 to 1
    right                      r_chosen > r_rejected
    calibration error          sum over bins of |sum of (certainty - right)| / pairs        (arXiv 1706.04599, eq. 3)

The expected calibration error over `BINS` bins of equal width: 0 where of the pairs with certainty 0.8 just 80 % are
right. Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lifecycle.rewards.interval import wilson

BINS = 10
MEASURES = ("accuracy", *(f"gap_{number}" for number in range(BINS)))
"""What is added up over pairs, in this order."""


def sums(difference_P: Tensor) -> Tensor:
    """(1 + BINS,) float64: pairs that are right, and by bin what certainty is too much. difference_P: of the scores."""
    certainty_P, right_P, bin_P = _judged(difference_P)
    gaps = torch.zeros(BINS, dtype=torch.float64, device=difference_P.device).index_add(0, bin_P, certainty_P - right_P)
    return torch.cat([right_P.sum()[None], gaps])


def told(means: Mapping[str, float], count: float) -> dict[str, float]:
    """What is logged of the means of `MEASURES`: accuracy and calibration error."""
    error = sum(abs(means[name]) for name in MEASURES[1:])
    return {"accuracy": means["accuracy"], "calibration_error": error}


def reliability(difference_P: Tensor) -> dict[str, Any]:
    """Of all held-out pairs at once: accuracy with its 95 % interval (Wilson), calibration error, and by bin the pairs,
    their mean certainty and the share of them that are right. Plain values."""
    certainty_P, right_P, bin_P = _judged(difference_P.cpu())
    pairs = len(difference_P)
    bins = []
    for number in range(BINS):
        inside = bin_P == number
        count = int(inside.sum())
        means = (float(values[inside].mean()) if count else None for values in (certainty_P, right_P))
        bins.append(dict(zip(("pairs", "certainty", "right"), (count, *means), strict=True)))
    found = dict(zip(MEASURES, (sums(difference_P.cpu()) / max(pairs, 1)).tolist(), strict=True))
    return {"pairs": pairs, **told(found, pairs), "interval": wilson(found["accuracy"], pairs), "bins": bins}


def _judged(difference_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Certainty and whether it is right, (P,) float64, and the bin of each pair. Of equal scores neither is right."""
    certainty_P = difference_P.double().abs().sigmoid()
    bin_P = ((certainty_P - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    return certainty_P, (difference_P > 0).double(), bin_P
