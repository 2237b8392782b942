"""Which of a step's candidates are trained on: drawn without replacement, by weight.

Of independent exponential times with rates w, the k least are such a draw (Efraimidis and Spirakis, 2006; the same as
the k greatest log w + Gumbel noise). The time of a prompt follows from the seed, the step and its key: neither its
place nor the ranks matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from lifecycle.system.seeds import derive


def drawn(keys: Sequence[int], weight_P: Tensor, *, most: int, seed: int, step: int) -> list[int]:
    """The keys of at most `most` prompts, the first drawn first. keys: each once."""
    times = [
        -math.log((derive(seed, "choice of prompts", step, key) + 0.5) / 2**63) / weight
        for key, weight in zip(keys, weight_P.tolist(), strict=True)
    ]
    return [key for _, key in sorted(zip(times, keys, strict=True))[:most]]
