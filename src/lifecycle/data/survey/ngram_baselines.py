"""Baselines from counts alone: unigram and bigram perplexity on the held-out rows, counted on the training text.

    unigram  p(w) = (c(w) + 1) / (N + V)
    bigram   p(w|v) = (c(v, w) + t(v) p(w)) / (c(v) + t(v)),  t(v) the number of distinct words after v
             (Witten and Bell 1991, interpolated)

A language model that is not far below both has learned no more than frequencies. Only trained tokens are counted and
measured, as w: under the view `chat` those that the assistant writes, each after the token before it (v). Pairs,
labelled answers and prompts have no perplexity, and no baseline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lifecycle.batch import IGNORED
from lifecycle.batch.item_arrays import sequences, trained_of
from lifecycle.data.module import DataModule
from lifecycle.data.stream.packing import Piece
from lifecycle.data.stream.pieces import Exhausted, Pieces

SAMPLE_TOKENS = 4_000_000


@dataclass(frozen=True)
class Counts:
    """Unigram and bigram counts of a training sample over a vocabulary of `size` ids."""

    size: int
    words: NDArray[np.int64]
    pairs: NDArray[np.int64]  # ascending v * size + w
    pair_counts: NDArray[np.int64]
    after: NDArray[np.int64]  # c(v): positions that v begins
    kinds: NDArray[np.int64]  # t(v)

    @classmethod
    def of(cls, before: NDArray[np.int64], after: NDArray[np.int64], size: int) -> Counts:
        """Counts of the pairs (before[i], after[i])."""
        pairs, pair_counts = np.unique(before * size + after, return_counts=True)
        kinds = np.bincount(pairs // size, minlength=size)
        return cls(
            size, np.bincount(after, minlength=size), pairs, pair_counts, np.bincount(before, minlength=size), kinds
        )

    def unigram(self, word: NDArray[np.int64]) -> NDArray[np.float64]:
        """p(word)."""
        return (self.words[word] + 1) / (self.words.sum() + self.size)

    def bigram(self, before: NDArray[np.int64], word: NDArray[np.int64]) -> NDArray[np.float64]:
        """p(word | before)."""
        key = before * self.size + word
        at = np.minimum(np.searchsorted(self.pairs, key), len(self.pairs) - 1)
        seen = np.where(self.pairs[at] == key, self.pair_counts[at], 0)
        kinds = self.kinds[before]
        total = self.after[before] + kinds
        uni = self.unigram(word)
        return np.where(total > 0, (seen + kinds * uni) / np.maximum(total, 1), uni)


def baselines(data: DataModule) -> dict[str, dict[str, float]]:
    """By validation domain: unigram and bigram perplexity of its trained tokens, and bytes of their text for each of
    them; empty in a view without a perplexity."""
    if not data.corpus.packing.has_text:
        return {}
    size = data.tokenizer.vocab_size
    examples = [example for piece in _sample(data) for example in sequences(piece.item)]
    trained = np.concatenate([trained_of(one)[1:] for one in examples])
    before = np.concatenate([one.ids[:-1] for one in examples]).astype(np.int64)[trained]
    after = np.concatenate([one.ids[1:] for one in examples]).astype(np.int64)[trained]
    counts = Counts.of(before, after, size)
    out = {}
    for domain, held in data.held_out.items():
        assert held.bytes is not None
        scored = held.rows["labels"] != IGNORED
        before, word = held.rows["input_ids"][scored].astype(np.int64), held.rows["labels"][scored].astype(np.int64)
        out[domain] = {
            "unigram": float(np.exp(-np.log(counts.unigram(word)).mean())),
            "bigram": float(np.exp(-np.log(counts.bigram(before, word)).mean())),
            "bytes_per_token": held.bytes / max(held.tokens, 1),
        }
    return out


def _sample(data: DataModule) -> list[Piece]:
    """Training documents in the shares of the mixture, each source at most once."""
    sample = []
    for source in data.sources:
        pieces = Pieces(data.corpus.documents(source.name), source.index, packing=data.corpus.packing)
        left = int(SAMPLE_TOKENS * data.weights[source.name])
        while left > 0 and pieces.documents.totals()["epochs"] < 1:
            try:
                piece = pieces.next(2**20)
            except Exhausted:
                break
            sample.append(piece)
            left -= piece.positions
    return sample
