"""How hard a document is, as one number: pure functions of its text or its token ids. Larger is harder.

    rarity        mean over tokens of -log2 p(token), p the share of the token in its source        bits
    readability   0.39 words / sentences + 11.8 syllables / words - 15.59                           school grade
    code          log2(nodes depth cyclomatic) of the syntax tree (`code_complexity.py`)

Length is the number of tokens; the loss under a parent is computed by `lineage/parent_loss.py`.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
SENTENCE_END = re.compile(r"[.!?]+(?=[\"”'’)\]]*(?:\s|$))")
VOWELS = re.compile(r"[aeiouyàáâäãåèéêëìíîïòóôöõùúûüýÿ]+")
SILENT = re.compile(r"(?<![aeiouy])(?:e|es|ed)$")
SOUNDED = re.compile(r"(?:[^aeiouy]le|[^aeiouy]les|[td]ed|(?:[sxz]|[cs]h|c|g)es)$")


def surprisal_bits(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(V,) -log2 of each token's share of `counts` (V,); infinite for tokens that do not occur."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log2(max(int(counts.sum()), 1)) - np.log2(counts))


def rarity(ids: NDArray[np.int32], bits: NDArray[np.float64]) -> float:
    """Mean `bits` (of `surprisal_bits`) of the tokens; 0 for none.

    The unigram form of sentence rarity (arXiv 1903.09848, eq. 2), as a mean: its sum is mostly length once more.
    """
    return float(bits[ids].mean()) if len(ids) else 0.0


def readability(text: str) -> float:
    """The grade of `text` by the formula of Flesch and Kincaid (Kincaid et al. 1975, Navy report 8-75); 0 for no word.

    A sentence ends at a run of .!? before a blank; what follows the last one is a sentence if it has a word.
    """
    words = WORD.findall(text)
    if not words:
        return 0.0
    sentences = [part for part in SENTENCE_END.split(text) if WORD.search(part)]
    return grade(len(words), len(sentences), sum(map(syllables, words)))


def grade(words: int, sentences: int, syllables: int) -> float:
    """The formula itself, from its three counts."""
    return 0.39 * words / sentences + 11.8 * syllables / words - 15.59


def syllables(word: str) -> int:
    """Runs of vowels in an English word, less an ending that is written and not spoken (made, times, called); 1 at
    least."""
    lower = word.lower()
    count = len(VOWELS.findall(lower))
    if SILENT.search(lower) and not SOUNDED.search(lower):
        count -= 1
    return max(count, 1)
