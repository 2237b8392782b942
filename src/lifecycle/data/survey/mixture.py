"""What a mixture will give, measured by reading every row once: documents, tokens, lengths, losses, overlaps, samples.

Counted are the items of the view of the run; lengths are their tokens, with all marks. An overlap is the share of a
source's documents that resemble one of another source (of its own: an earlier one), found as near duplicates are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.clean.near_duplicates import REASON, near_pairs
from lifecycle.data.clean.scan import scan
from lifecycle.data.clean.source import Source
from lifecycle.data.corpus import Corpus
from lifecycle.data.quality.rules import NearRules
from lifecycle.data.survey.row_stats import Measure, Measured, left_out_samples
from lifecycle.data.views import ITEMS

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
BINS_PER_DOUBLING = 2


def measure(data: Corpus, *, budget_tokens: int | None, processes: int, samples: int) -> dict[str, Any]:
    """The analysis of the mixture of `data`, for a run of `budget_tokens` where one is planned: the content of
    analysis.json."""
    sources = {}
    for source in data.sources:
        work = Measure(data.maker(source), data.seed, samples)
        whole = Measured(counts=Counter(source.left_out_counts), samples=left_out_samples(source, data.seed, samples))
        for part, _ in scan(source, work, processes=processes, doing="measuring"):
            whole.add(part, samples)
        lengths = np.concatenate([np.zeros(0, np.int32), *whole.lengths])
        planned = None if budget_tokens is None else data.weights[source.name] * budget_tokens
        sources[source.name] = {
            "domain": source.domain,
            "weight": data.weights[source.name],
            **amounts(lengths, whole, planned),
            "rows": dict(sorted(whole.counts.items())),
            "masked": dict(sorted(whole.masked.items())),
            "samples": [
                {"verdict": verdict, "row": row, "text": text, "item": whole.items.get(row)}
                for _, verdict, row, text in sorted(whole.samples, key=lambda one: one[1:3])
            ],
        }
    return {
        "budget_tokens": budget_tokens,
        "view": data.make.view,
        "items": ITEMS[data.make.view],
        "tokenizer": data.tokenizer.sha256,
        "sources": sources,
        "overlaps": overlaps(data.sources, cache=data.cache, processes=processes),
    }


def amounts(lengths: NDArray[np.int32], whole: Measured, planned: float | None) -> dict[str, Any]:
    """Documents (items of the view), tokens, passes at the budget (None without one), percentiles and histogram of the
    lengths (N,).

    A document of n tokens gives n - 1 positions, of which a pass has as many as all documents give.
    """
    tokens, size, positions = int(lengths.sum()), whole.bytes, whole.positions
    ranks = PERCENTILES if len(lengths) else ()
    return {
        "documents": len(lengths),
        "tokens": tokens,
        "trained": whole.trained,
        "bytes": size,
        "bytes_per_token": size / max(tokens, 1),
        "planned_tokens": None if planned is None else round(planned),
        "epochs": planned / positions if planned is not None and positions else None,
        "length": {str(p): int(np.percentile(lengths, p, method="inverted_cdf")) for p in ranks},
        "histogram": histogram(lengths),
    }


def histogram(lengths: NDArray[np.int32]) -> dict[str, int]:
    """Documents by length, in bins of half a doubling: each bin by the least length in it."""
    bins = np.floor(BINS_PER_DOUBLING * np.log2(np.maximum(lengths, 1))).astype(np.int64)
    found, counts = np.unique(bins, return_counts=True)
    return {
        str(int(np.ceil(2 ** (one / BINS_PER_DOUBLING)))): int(number)
        for one, number in zip(found, counts, strict=True)
    }


def overlaps(sources: Sequence[Source], *, cache: Path, processes: int) -> dict[str, dict[str, float]]:
    """By source, and by other source: the share of the first one's documents that resemble one of the other's.

    Of a source itself: the share that resemble an earlier one of its own. As the rows were before near duplicates were
    taken out; the rules are those of the first source that has the filter.
    """
    before = [replace(s, left_out={k: v for k, v in s.left_out.items() if k != REASON}) for s in sources]
    rules = next((s.spec.filters.near for s in sources if s.spec.filters.near_duplicates), NearRules())
    ordinals, pairs = near_pairs(before, rules, cache=cache, processes=processes)
    sizes = [len(one) for one in ordinals]
    owner = np.repeat(np.arange(len(sources)), sizes)
    cluster = clusters(pairs, len(owner))
    there = np.zeros((len(sources), cluster.max(initial=0) + 1), np.bool_)
    there[owner, cluster] = True
    first = np.ones(len(owner), np.bool_)  # of its source in its cluster
    order = np.lexsort((np.arange(len(owner)), cluster, owner))
    first[order[1:]] = (owner[order[1:]] != owner[order[:-1]]) | (cluster[order[1:]] != cluster[order[:-1]])
    out: dict[str, dict[str, float]] = {}
    for i, one in enumerate(sources):
        mine, shares = owner == i, dict[str, float]()
        for j, other in enumerate(sources):
            resemble = ~first[mine] if i == j else there[j, cluster[mine]]
            shares[other.name] = float(resemble.mean()) if sizes[i] else 0.0
        out[one.name] = shares
    return out


def clusters(pairs: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """(size,) the least number of each one's connected component under `pairs` (P, 2) of i < j."""
    root = np.arange(size)
    while True:
        least_of = root.copy()
        np.minimum.at(least_of, root[pairs[:, 1]], root[pairs[:, 0]])
        np.minimum.at(least_of, root[pairs[:, 0]], root[pairs[:, 1]])
        least_of = least_of[least_of[root]]
        if (least_of == root).all():
            return root
        root = least_of
