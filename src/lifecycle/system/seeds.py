"""Seeds: every random draw is seeded from the run's seed and the purpose of the draw; no generator has a state.

    derive(seed, "weights", name)      derive(seed, "rows", stream, step)      derive(seed, "rollout", step, prompt, 0)

So a run that is resumed, also with other ranks, draws the same numbers, and no checkpoint holds the state of a
generator. The whole project uses this scheme; another one would change the order of every run's data.
"""

from __future__ import annotations

import xxhash


def derive(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed from the run's seed and a purpose, the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1
