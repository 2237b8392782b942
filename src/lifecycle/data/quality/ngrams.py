"""Words of a text and hashes of their n-grams: what near duplicates and contamination are found by.

A word is a run of letters and digits, lower-cased; punctuation is dropped. Scripts that put no blanks between words
(Chinese, Japanese kana) count each character as one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of `text` in order, lower-cased."""
    return WORD.findall(text.lower())


def word_hashes(parts: Sequence[str]) -> NDArray[np.uint64]:
    """64-bit xxh3 of each word, (N,)."""
    ids = {word: xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in set(parts)}
    return np.fromiter((ids[word] for word in parts), np.uint64, len(parts))


def ngrams(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """One 64-bit hash for each run of n words, (max(N - n + 1, 0),)."""
    count = max(len(hashes) - n + 1, 0)
    out = np.zeros(count, np.uint64)
    for shift in range(n):
        out = out * np.uint64(0x9E3779B97F4A7C15) + hashes[shift : shift + count]
    return out


def shingles(text: str, n: int) -> NDArray[np.uint64]:
    """Hashes of the n-grams of `text`; a text shorter than n words is one shingle, a text without words has none."""
    hashes = word_hashes(words(text))
    return ngrams(hashes, min(n, len(hashes))) if len(hashes) else hashes
