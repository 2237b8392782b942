"""Randomness is derived, not carried: every draw is seeded from the run's seed and what the draw is for.

    derive(seed, "weights", name)      derive(seed, "rows", stream, step)      derive(seed, "rollout", step, prompt, 0)

So a run that is resumed, or goes on with other ranks, draws what it would have drawn, and no checkpoint holds the state
of a generator. One scheme for all of the project; another one would be another order of every run's data.
"""

from __future__ import annotations

import xxhash


def derive(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed from the run's seed and a purpose, the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1
