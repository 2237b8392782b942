"""wilson: the interval that a share of marked completions, or of pairs told apart, lies in."""

from __future__ import annotations

NORMAL = 1.96
"""Standard deviations on both sides that hold 95 % of a normal distribution."""


def wilson(share: float, count: int, *, z: float = NORMAL) -> tuple[float, float]:
    """The interval of a share of `count` independent trials (Wilson 1927); z 1.96: 95 %. All of 0 to 1 for none."""
    if not count:
        return 0.0, 1.0
    middle, half = share + z * z / (2 * count), z * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    return max(0.0, (middle - half) / (1 + z * z / count)), min(1.0, (middle + half) / (1 + z * z / count))
