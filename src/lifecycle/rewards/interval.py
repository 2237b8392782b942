"""The intervals that a share of marked completions, or of pairs told apart, and what it gained lie in: wilson, and
gain; and pass@k, with its own."""

from __future__ import annotations

import math
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


def pass_at(k: int, by_count: Sequence[float]) -> float:
    """The chance that one of k samples of a prompt is right, without bias, over prompts of which n samples were drawn:
    the mean of 1 - C(n - c, k) / C(n, k) (Chen 2021, arXiv 2107.03374). by_count: how many prompts have c right ones,
    for c from 0 to n."""
    n = len(by_count) - 1
    return sum(share * count for share, count in zip(_chances(k, n), by_count, strict=True)) / sum(by_count)


def pass_at_interval(k: int, by_count: Sequence[float], *, draws: int = 10_000) -> tuple[float, float]:
    """Its 95 % interval by the bootstrap over prompts: they are drawn anew, each with its samples."""
    counts = np.array(by_count, np.float64)
    prompts = round(float(counts.sum()))
    drawn = np.random.default_rng(0).multinomial(prompts, counts / counts.sum(), size=draws)
    low, high = np.percentile(drawn @ np.array(_chances(k, len(by_count) - 1)) / prompts, (2.5, 97.5))
    return float(low), float(high)


def _chances(k: int, n: int) -> list[float]:
    """Of k of n samples, of which c are right, that one is; for c from 0 to n."""
    return [1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)]
