"""What drawing the samples of a run costs: a decode step reads the weights once, and the keys and values of its rows.

    seconds of a step of the run = turns x tokens of a sample x bytes of a decode step / (bandwidth x share)

A turn is as many samples as are decoded at a time. Every sample is counted with its most tokens and its longest prompt,
so this is an upper bound at its share of the bandwidth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TERA = 10**12

SHARES = (0.1, 0.25, 0.5)
"""Of the bandwidth, that hours are given for: one H200 came to a tenth, at 1, at 256 and at 1,024 rows of 0.4B."""


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """prompts, samples: of a step, the most of any, over all devices. total: samples of the run. tokens: of a sample at
    most. rows: samples that one device decodes at a time. cache: bytes of their keys and values. hours: share of the
    bandwidth -> hours of the run; None where the bandwidth is not known. bandwidth: TB/s."""

    prompts: int
    samples: int
    total: int
    tokens: int
    rows: int
    cache: float
    hours: Mapping[float, float] | None
    bandwidth: float | None


def sampling_of(
    *,
    prompts: int,
    samples: Mapping[int, int],
    tokens: int,
    longest: int,
    slots: int,
    devices: int,
    weights: float,
    position: float,
    bandwidth: float | None,
) -> SamplingPlan:
    """prompts: of a step. samples: of a step -> steps with so many. tokens: of a completion at most; longest: positions
    with its prompt. slots: samples decoded at a time on each of `devices`. weights, position: bytes of the weights, and
    of the keys and values of one position of one sample. bandwidth: TB/s."""
    most = max(samples)
    rows = min(slots, -(-most // devices))
    turns = sum(steps * -(-each // (devices * rows)) for each, steps in samples.items())
    read = weights + rows * position * (longest - tokens / 2)  # the mean position of a token
    moved = turns * tokens * read
    return SamplingPlan(
        prompts=prompts,
        samples=most,
        total=sum(steps * each for each, steps in samples.items()),
        tokens=tokens,
        rows=rows,
        cache=rows * longest * position,
        hours=None if bandwidth is None else {share: moved / (bandwidth * TERA * share) / 3600 for share in SHARES},
        bandwidth=bandwidth,
    )
