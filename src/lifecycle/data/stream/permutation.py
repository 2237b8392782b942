"""A permutation of 0..n-1 that needs no memory: element i in constant time, anew for every key.

A Feistel network over the smallest even number of bits that holds n, with cycle walking back into the range
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). So a full shuffle of a billion documents resumes at
any element at once, and no permutation is ever stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lifecycle.system.seeds import derive

ROUNDS = 6


def permute(index: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Elements `index` (any shape, each in [0, size)) of the permutation of range(size) that `key` names."""
    half = max(1, ((max(size, 2) - 1).bit_length() + 1) // 2)
    keys = [np.uint64(derive(key, "feistel", r)) for r in range(ROUNDS)]
    out = _feistel(index.astype(np.uint64), half, keys)
    outside = out >= size
    while outside.any():  # the domain is at most 4 times the range: about two walks on average in the worst case
        out[outside] = _feistel(out[outside], half, keys)
        outside = out >= size
    return out.astype(np.int64)


def _feistel(x: NDArray[np.uint64], half: int, keys: list[np.uint64]) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    left, right = x >> shift, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
