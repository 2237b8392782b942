"""Near duplicates within and across the sources of a run: the first in order stays, rows that resemble it are left out.

    source -> rows that pass its filters -> word n-grams -> MinHash signatures (kept on disk) -> similar pairs

The order is that of the config's sources, then of their rows. What is replayed is compared within its own generation
only: it repeats what the parent was trained on, and must stay even where a later mixture has the same document.

A source's signatures are made once and kept in the cache with 8 + 4 * permutations bytes a document (520 with 128); an
interrupted scan continues where it stopped. The pairs of a mixture need about 60 bytes of memory a document, and 65
more for each that is left out. Cost grows linearly with the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.clean.cached_scan import kept_array, kept_scan
from lifecycle.data.clean.filter_row import filter_row
from lifecycle.data.clean.scan import refuse_remote
from lifecycle.data.clean.source import Source
from lifecycle.data.mixture.replay_names import generation_of
from lifecycle.data.quality.minhash import ALGORITHM, PAIRING, Signatures, repeated, signatures, similar_pairs
from lifecycle.data.quality.ngrams import shingles
from lifecycle.data.quality.rules import NearRules
from lifecycle.data.read.row import RawRow
from lifecycle.errors import UserError

VERSION = 1
REASON = "near duplicate"
Signed = tuple[NDArray[np.int64], NDArray[np.uint32]]  # row numbers (N,) and their signatures (N, K)


def without_near_duplicates(sources: Sequence[Source], *, cache: Path, processes: int) -> list[Source]:
    """`sources` with the near duplicates left out of those that have the filter. Raises UserError where they differ.

    Sources without the filter are neither cleaned nor compared with.
    """
    compared: dict[int | None, list[Source]] = {}
    for source in sources:
        if source.spec.filters.near_duplicates and source.shards is None:
            compared.setdefault(generation_of(source.name), []).append(source)
    found: dict[str, NDArray[np.int64]] = {}
    for together in compared.values():
        found |= _repeated(together, cache=cache, processes=processes)
    return [replace(s, left_out={**s.left_out, REASON: found[s.name]}) if s.name in found else s for s in sources]


def _repeated(sources: Sequence[Source], *, cache: Path, processes: int) -> dict[str, NDArray[np.int64]]:
    """By source, the rows that resemble one before them in any of `sources`."""
    first = sources[0]
    for source in sources:
        refuse_remote(source, "filters.near_duplicates")
        if source.spec.filters.near != first.spec.filters.near:
            raise UserError(
                f"data.sources.{source.name}.filters.near differs from data.sources.{first.name}.filters.near: sources "
                "are compared with each other, so give all of them the same threshold, ngram and permutations"
            )
    ordinals, pairs = near_pairs(sources, first.spec.filters.near, cache=cache, processes=processes)
    gone = repeated(pairs)
    ends = np.cumsum([len(rows) for rows in ordinals])
    found = {}
    for source, rows, end in zip(sources, ordinals, ends.tolist(), strict=True):
        here = gone[(gone >= end - len(rows)) & (gone < end)]
        found[source.name] = np.asarray(rows[here - (end - len(rows))], np.int64)
    return found


def near_pairs(
    sources: Sequence[Source], rules: NearRules, *, cache: Path, processes: int
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Row numbers of each source's documents, and similar pairs (P, 2) of numbers among all documents together.

    Documents are numbered through all sources in order. Pairs are as `minhash.similar_pairs` gives them.
    """
    keys = [_key(source, rules) for source in sources]
    signed = [
        kept_scan(
            source,
            _Sign(rules.ngram, rules.permutations),
            folder=cache / "signatures" / key,
            columns={"rows": ("<i8", 1), "signatures": ("<u4", rules.permutations)},
            processes=processes,
            doing="looking for near duplicates",
        )
        for source, key in zip(sources, keys, strict=True)
    ]
    form = hashlib.sha256("|".join([*keys, repr((PAIRING, rules.threshold))]).encode()).hexdigest()[:32]
    path = cache / "near_duplicates" / f"{form}.npy"
    pairs = kept_array(path, lambda: similar_pairs(Signatures([one[1] for one in signed]), rules.threshold))
    return [one[0] for one in signed], pairs


def _key(source: Source, rules: NearRules) -> str:
    """A hash of what a source's signatures depend on, which does not include the threshold."""
    filters = replace(source.spec.filters, near_duplicates=False, near=NearRules())
    plain = replace(source, spec=replace(source.spec, filters=filters))
    form = (VERSION, ALGORITHM, plain.fingerprint, rules.ngram, rules.permutations)
    return hashlib.sha256(repr(form).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Sign:
    """The work of one process on some rows: numbers and signatures of those that the filters keep."""

    ngram: int
    permutations: int

    def __call__(self, source: Source, raws: list[RawRow]) -> Signed:
        ordinals, sets = list[int](), list[NDArray[np.uint64]]()
        for raw in raws:
            text = filter_row(raw, source).text
            if text is not None and len(one := shingles(text, self.ngram)):
                ordinals.append(raw.ordinal)
                sets.append(one)
        return np.array(ordinals, np.int64), signatures(sets, self.permutations)
