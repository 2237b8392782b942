"""Assigns the rows of each pass over a source to streams: every wanted row to exactly one stream.

    files in an order drawn for the pass -> wanted rows, numbered in it: their places -> blocks of places that are
    shuffled together -> groups of S places, one for each of the S streams, in an order drawn for the group

The stream of a row is a function of its place alone, so a process needs no knowledge of the rows ahead, and parses only
those of its own streams. The shares of streams differ by at most one row, and a stream has other rows in every pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.clean.row_counts import row_counts
from lifecycle.data.clean.source import Source
from lifecycle.system.seeds import derive

PlaceOf = Callable[[int], int]
"""Row number -> the row's place in the pass; below 0 for a row that is not wanted."""


class Assignment:
    """The stream that reads each row of `source`, and in which order, in each pass.

    buffer: rows that are shuffled together, over all `streams`. shuffle False: files and rows stay in their own order.
    """

    def __init__(self, source: Source, *, streams: int, seed: int, buffer: int, shuffle: bool) -> None:
        self.source, self.streams = source, streams
        self.block_places = max(1, buffer // streams) * streams
        self._seed, self._shuffle = seed, shuffle
        self.numbering = Numbering(source) if source.is_numbered else None
        self.owners = lru_cache(4)(self._owners)

    def files(self, epoch: int) -> NDArray[np.int64]:
        """Indices of the source's files in the order of pass `epoch`."""
        files = np.arange(len(self.source.files))
        return self._rng("files", epoch).permutation(files) if self._shuffle else files

    def order(self, epoch: int, block: int, stream: int, rows: int) -> list[int]:
        """The order in which a stream gives out its `rows` rows of a block, as indices of them."""
        return self._rng("block", epoch, block, stream).permutation(rows).tolist() if self._shuffle else [*range(rows)]

    def _owners(self, epoch: int, block: int) -> memoryview:
        """The stream of every place of a block."""
        drawn = self._rng("deal", epoch, block).random((self.block_places // self.streams, self.streams))
        return drawn.argsort(axis=1).astype(np.int32).ravel().data  # indexed faster than an array

    def _rng(self, purpose: str, *at: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(derive(self._seed, purpose, self.source.name, *at)))


class Numbering:
    """Places of rows in a source of which some rows are not wanted. Unwanted rows are named by their number, counted in
    the order of the files' names, so the number of rows before each file is needed."""

    def __init__(self, source: Source) -> None:
        rows = row_counts(source) if source.file_rows is None else source.file_rows
        self.first = np.concatenate([[0], np.cumsum(rows)])  # number of each file's first row
        self._left_out, self._rows = source.left_out_rows, source.rows

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(files,) wanted rows of each."""
        return np.array([np.count_nonzero(self._wanted(file)) for file in range(len(self.first) - 1)], np.int64)

    def place_of(self, file: int, before: int) -> PlaceOf:
        """The places of the rows of one file; before: places in the files that come before it in the pass."""
        wanted = self._wanted(file)
        places = np.where(wanted, before - 1 + np.cumsum(wanted), -1).data
        first, size = int(self.first[file]), len(wanted)
        return lambda row: places[row - first] if row - first < size else -1

    def _wanted(self, file: int) -> NDArray[np.bool_]:
        begin, end = self.first[file : file + 2]
        wanted = np.full(end - begin, self._rows is None)
        if self._rows is not None:
            wanted[_between(self._rows, begin, end) - begin] = True
        wanted[_between(self._left_out, begin, end) - begin] = False
        return wanted


def _between(rows: NDArray[np.int64], begin: int, end: int) -> NDArray[np.int64]:
    """Those of `rows`, ascending, from `begin` to `end` (exclusive)."""
    return rows[slice(*np.searchsorted(rows, [begin, end]))]
