"""Exact duplicates of a source: one scan finds the ordinals of rows whose text came before, and the scan is cached.

Streams then drop by ordinal and share nothing: what is a duplicate does not depend on who reads which rows.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from lifecycle.data.files import File, fingerprint, is_remote
from lifecycle.data.formats import as_text, to_record
from lifecycle.data.raw_row import BadRow, Position
from lifecycle.data.readers import parse, rows
from lifecycle.data.specs import SourceSpec
from lifecycle.errors import UserError

SCAN_VERSION = 1
REPORT_EVERY_S = 10.0


def duplicate_rows(files: Sequence[File], spec: SourceSpec, name: str, cache: Path) -> NDArray[np.int64]:
    """Ordinals, ascending, of the rows whose text equals that of an earlier row; bad rows are no duplicates.

    Texts are compared by their 128-bit xxh3 (two different texts share one with a chance below 1e-20 among a billion).
    Raises UserError for remote files.
    """
    if remote := [file.url for file in files if is_remote(file.url)]:
        raise UserError(
            f"data.sources.{name}.filters.exact_duplicates reads the whole source first, and {remote[0]} is remote: "
            "run stage=prepare on local copies and train with data.prepared=RUN, or switch the filter off"
        )
    form = (
        SCAN_VERSION,
        fingerprint(files),
        spec.format,
        sorted(spec.fields.items()),
        spec.answer_base,
        spec.sample_by,
    )
    path = cache / "duplicates" / f"{hashlib.sha256(repr(form).encode()).hexdigest()[:32]}.npy"
    if path.exists():
        found: NDArray[np.int64] = np.load(path)
        return found
    found = _repeated(*_digests(files, spec, name))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    np.save(aside, found)
    aside.replace(path)
    return found


def _digests(files: Sequence[File], spec: SourceSpec, name: str) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Ordinals (N,) of the good rows and the two halves (N, 2) of their digests."""
    ordinals, digests = list[int](), bytearray()
    started = said = time.monotonic()
    for raw in rows(files, Position(0, 0, 0), wanted=lambda ordinal: True):
        try:
            text = as_text(to_record(parse(raw), spec=spec, name=name, row_id=""))
        except BadRow:
            continue
        ordinals.append(raw.ordinal)
        digests += xxhash.xxh3_128_digest(text.encode())
        if time.monotonic() - said > REPORT_EVERY_S:
            said = time.monotonic()
            place = f"file {raw.next.file + 1} of {len(files)}, row {raw.ordinal + 1:,}"
            sys.stderr.write(f"data.sources.{name}: looking for duplicates, {place}, {said - started:.0f} s\n")
    return np.array(ordinals, np.int64), np.frombuffer(bytes(digests), np.uint64).reshape(-1, 2)


def _repeated(ordinals: NDArray[np.int64], digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    order = np.lexsort((ordinals, digests[:, 1], digests[:, 0]))
    ranked = digests[order]
    again = np.zeros(len(order), bool)
    again[1:] = (ranked[1:] == ranked[:-1]).all(axis=1)
    return np.sort(ordinals[order][again])
