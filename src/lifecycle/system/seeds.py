"""Randomness is derived, not carried: every draw is seeded from the run's seed and what the draw is for."""

from __future__ import annotations

import xxhash


def derive(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed from the run's seed and a purpose, the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1
