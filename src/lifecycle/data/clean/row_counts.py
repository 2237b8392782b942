"""How many rows each file of a source has, where rows are named by their number: counted once, then cached.

Rows beyond `max_rows` are neither read nor counted.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.clean.cached_scan import kept_array
from lifecycle.data.clean.source import Source
from lifecycle.data.clean.walk import walk_rows
from lifecycle.data.read.files.listing import fingerprint
from lifecycle.data.read.row import Position


def with_row_counts(source: Source, *, cache: Path) -> Source:
    """The source with the rows of each of its files."""
    key = (fingerprint(source.files), [file.kind for file in source.files], source.spec.max_rows)
    path = cache / "rows" / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.npy"
    return replace(source, file_rows=kept_array(path, lambda: row_counts(source)))


def row_counts(source: Source) -> NDArray[np.int64]:
    """(files,) rows of each file, `max_rows` of them in all, in the order of the files."""
    counts = np.zeros(len(source.files), np.int64)
    for index in range(len(source.files)):
        before = int(counts.sum())
        if before == source.spec.max_rows:
            break
        walk = walk_rows(source, Position(index, 0, before), wanted=lambda row: False, stop=index + 1)
        for _ in walk:
            pass
        counts[index] = walk.end.row - before
    return counts
