"""Exact duplicates of a source: one pass finds the ordinals of rows whose text came before, and they are cached.

    source -> texts -> 128-bit digests (kept on disk) -> ordinals of all but the first of equal ones

Streams drop rows by these ordinals without communicating, so which rows are duplicates does not depend on how rows are
divided among streams. A row takes 24 bytes on disk, and about six of memory while equal ones are found. An interrupted
pass continues where it stopped.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from lifecycle.data.clean.cached_scan import kept_array, kept_scan
from lifecycle.data.clean.scan import refuse_remote
from lifecycle.data.clean.source import Source
from lifecycle.data.read.files.listing import fingerprint
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.in_words import as_text
from lifecycle.data.read.row import BadRow, RawRow, parse

VERSION = 2
REASON = "exact duplicate"
PARTS = 16  # of the digests, by value: one of them at a time is in memory
COLUMNS = {"rows": ("<i8", 1), "digests": ("<u8", 2)}
Digested = tuple[NDArray[np.int64], NDArray[np.uint64]]  # row numbers (N,) and the halves (N, 2) of their digests


def duplicate_rows(source: Source, *, cache: Path, processes: int) -> NDArray[np.int64]:
    """Ordinals, ascending, of the rows whose text equals that of an earlier row; bad rows are no duplicates.

    Texts are compared by their 128-bit xxh3 (two different texts share one with a chance below 1e-20 among a billion).
    Raises UserError for remote files.
    """
    refuse_remote(source, "filters.exact_duplicates")
    key = _key(source)
    path = cache / "duplicates" / f"{key}.npy"

    def make() -> NDArray[np.int64]:
        rows, digests = kept_scan(
            source,
            _digested,
            folder=cache / "digests" / key,
            columns=COLUMNS,
            processes=processes,
            doing="looking for duplicates",
        )
        return repeated(rows, digests)

    return kept_array(path, make)


def repeated(rows: NDArray[np.int64], digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Those of `rows` (N,), ascending, whose digest (N, 2) came before. Both may be mapped: they are read in parts."""
    found = [np.zeros(0, np.int64)]
    part_of = digests[:, 0].astype(np.uint8) % PARTS
    for part in range(PARTS):
        mine = np.flatnonzero(part_of == part)
        high, low = digests[mine].T
        order = np.lexsort((low, high))  # stable: equal ones stay in the order of the rows
        high, low = high[order], low[order]
        again = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
        found.append(rows[mine[order[1:][again]]])
    return np.sort(np.concatenate(found))


def _key(source: Source) -> str:
    """What the texts of a source depend on."""
    spec = source.spec
    written = (spec.format, sorted(spec.fields.items()), spec.answer_base, spec.step_tags, spec.sample_by)
    form = (VERSION, fingerprint(source.files), written, spec.max_rows)
    return hashlib.sha256(repr(form).encode()).hexdigest()[:32]


def _digested(source: Source, raws: list[RawRow]) -> Digested:
    """The work of one process on some rows: numbers and digests of those that are not bad."""
    ordinals, digests = list[int](), bytearray()
    for raw in raws:
        try:
            text = as_text(to_record(parse(raw), spec=source.spec, name=source.name, row_id=""))
        except BadRow:
            continue
        ordinals.append(raw.ordinal)
        digests += xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
    return np.array(ordinals, np.int64), np.frombuffer(bytes(digests), "<u8").reshape(-1, 2)
