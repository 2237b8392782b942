"""The intervals that a share of marked completions, or of pairs told apart, and what it gained lie in: wilson, and
gain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NORMAL = 1.96
"""Standard deviations on both sides that hold 95 % of a normal distribution."""


def wilson(share: float, count: int, *, z: float = NORMAL) -> tuple[float, float]:
    """The interval of a share of `count` independent trials (Wilson 1927); z 1.96: 95 %. All of 0 to 1 for none."""
    if not count:
        return 0.0, 1.0
    middle, half = share + z * z / (2 * count), z * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    return max(0.0, (middle - half) / (1 + z * z / count)), min(1.0, (middle + half) / (1 + z * z / count))


def gain(before: Sequence[bool], after: Sequence[bool], *, draws: int = 10_000) -> tuple[float, float, float]:
    """What the share of right answers to the same questions gained, and its 95 % interval by the paired bootstrap: the
    questions are drawn anew, each with both of its answers."""
    change = np.array(after, np.float64) - np.array(before, np.float64)
    each = [(change == value).mean() for value in (-1, 0, 1)]
    counted = np.random.default_rng(0).multinomial(len(change), each, size=draws)  # as questions drawn with replacement
    low, high = np.percentile((counted[:, 2] - counted[:, 0]) / len(change), (2.5, 97.5))
    return float(change.mean()), float(low), float(high)
