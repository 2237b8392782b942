"""Which held-out items are measured: a sample over the whole held-out set, the same from rows and from shards.

    documents in the order of a hash of their text -> the first of them, until they hold `tokens` positions

The hash is the one that holds a share of the documents out, so the choice depends on neither the run's seed nor the
order of files: rows and shards, parent and child measure the same. Finding the documents takes a pass over the source;
the result is kept in the cache. Of a source of more than LOCAL_BYTES (over the network: REMOTE_BYTES) the same share of
every file is looked at, from its beginning, or of many small documents the same share of the files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lifecycle.batch import Item, positions
from lifecycle.batch.item_arrays import joined, split
from lifecycle.data.clean.bad_rows import BAD, refuse_broken
from lifecycle.data.clean.cached_scan import kept
from lifecycle.data.clean.filter_row import HELD_OUT, FilteredRow, filter_row
from lifecycle.data.clean.scan import scan
from lifecycle.data.clean.source import Source, text_hash
from lifecycle.data.clean.walk import walk_rows
from lifecycle.data.read.files.listing import is_remote
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.in_words import held_out_by
from lifecycle.data.read.quarantine import quarantine
from lifecycle.data.read.row import BadRow, Position, RawRow, parse
from lifecycle.data.read.spec import SourceSpec, ValidationRatio
from lifecycle.system.seeds import derive
from lifecycle.tokenizer.tokenizer import Tokenizer

VERSION = 2
LOCAL_BYTES = 16 * 2**30  # of files as stored: more is not read before a run begins, ...
REMOTE_BYTES = 256 * 2**20  # ... nor over the network, ...
BYTES_A_TOKEN = 12.0  # ... but for what so many held-out tokens may take: text has 3 to 6
TOKENISED_AT_ONCE = 256
BY_ROWS = ("parquet", "arrow")  # positions in such a file count rows, in others bytes

ORDER = np.dtype([("hash", "<u8"), ("reach", "<f8")])
"""Of a held-out document: the hash that it is chosen by, and the share of its file that lies before its end."""


def bytes_read(sizes: Sequence[tuple[str, int]]) -> int:
    """How many bytes of files (address and size as stored) are looked at in any case."""
    return REMOTE_BYTES if any(is_remote(url) for url, _ in sizes) else LOCAL_BYTES


def share_read(sizes: Sequence[tuple[str, int]], spec: SourceSpec, tokens: int) -> float:
    """The share of every file that is looked at for so many held-out tokens; infinite for all."""
    by_number = spec.max_rows is not None or spec.filters.exact_duplicates or spec.filters.near_duplicates
    stored = sum(size for _, size in sizes)
    ratio = spec.validation.ratio if isinstance(spec.validation, ValidationRatio) else 1.0
    budget = max(bytes_read(sizes), BYTES_A_TOKEN * tokens / ratio)
    return math.inf if by_number or stored <= budget else budget / stored


def first(order: NDArray[np.void], positions: NDArray[np.int64], tokens: int, share: float) -> NDArray[np.int64]:
    """Numbers of the documents that are measured, in the order of their hashes: as many as `tokens` positions take."""
    there = np.flatnonzero(order["reach"] < share)
    ranked = there[np.argsort(order["hash"][there], kind="stable")]
    given = np.cumsum(positions[ranked])
    return ranked[: int(np.searchsorted(given, tokens)) + 1] if tokens > 0 else ranked[:0]


class Reach:
    """How far in its file a row ends, from 0 to 1 (beyond, where a file is compressed); of a file that is one document,
    a fixed random number instead, so that a share of such files is looked at."""

    def __init__(self, source: Source) -> None:
        self._source = source
        sizes = [(file.url, file.size) for file in source.files]
        self._all = sum(size for _, size in sizes) <= bytes_read(
            sizes
        )  # then every row is looked at, and no share is needed
        self._index = {file.url: index for index, file in enumerate(source.files)}
        self._size = lru_cache(1)(self.size)

    def __call__(self, raw: RawRow) -> float:
        if self._all:
            return 0.0
        index = self._index[raw.file]
        if self._source.files[index].kind == "document":
            return self.of_document(index)
        return raw.next.offset / max(self._size(index), 1)

    def of_document(self, index: int) -> float:
        """Of the file with this number."""
        return derive(0, "held out", index) / 2**63 % 1.0

    def size(self, index: int) -> int:
        """Of a file, in the unit that positions in it are counted in."""
        file = self._source.files[index]
        if file.kind not in BY_ROWS:
            return file.size
        begin = Position(index, 0, 0)
        walk = walk_rows(self._source, begin, wanted=lambda row: False, stop=index + 1, past_limit=True)
        for _ in walk:
            pass
        return walk.end.row


class Make(Protocol):
    """Makes items of rows by a tokenizer (`data.views.Maker`)."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def key(self) -> str: ...
    def __call__(self, rows: Sequence[FilteredRow]) -> Sequence[Item | str]: ...


def held_out_items(source: Source, make: Make, *, tokens: int, cache: Path, processes: int) -> list[Item]:
    """The items of `source` that are measured, about `tokens` positions of them: of its held-out share, or of all its
    rows where it has none. Raises UserError where too many of them are broken."""
    if tokens <= 0:
        return []
    share = share_read([(file.url, file.size) for file in source.files], source.spec, tokens)
    form = (VERSION, source.fingerprint, make.tokenizer.sha256, make.key, tokens, share)
    path = cache / "held_out" / f"{hashlib.sha256(repr(form).encode()).hexdigest()[:32]}.npz"

    def write(file: IO[bytes]) -> None:
        items, counts = _choose(source, make, tokens, share, processes)
        arrays = joined(items, "items")
        there = {name: arrays.pop(name) for name in list(arrays) if isinstance(arrays[name], np.ndarray)}
        np.savez(file, **there, lists=json.dumps(arrays), counts=json.dumps(counts))

    values, counts = kept(path, write, _read)
    if source.held_out is None:
        refuse_broken(source, counts, before=sum(counts.values()), at_end=True)
    return split(values, "items")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Items as arrays, and the verdicts."""
    with np.load(path) as found:
        values: dict[str, Any] = {name: found[name] for name in found.files if name not in ("lists", "counts")}
        return values | json.loads(str(found["lists"])), json.loads(str(found["counts"]))


def _choose(source: Source, make: Make, tokens: int, share: float, processes: int) -> tuple[list[Item], Counter[str]]:
    """The items of least hash, and the verdicts on all rows that were looked at."""
    raws = None if math.isinf(share) else _heads(source, share)
    least, counts = _Least(make, tokens), Counter[str]()
    for (found, filtered), _ in scan(source, _Look(seed_of(source)), processes=processes, doing="held out", raws=raws):
        least.add(found)
        counts.update(filtered)
    items = least.items()
    counts.update(least.refused)
    return items, counts


def seed_of(source: Source) -> int:
    """Of the hash that the source's held-out documents are chosen by."""
    return ValidationRatio.seed if source.held_out is None else source.held_out.seed


def _heads(source: Source, share: float) -> Iterator[RawRow]:
    """The rows of every file that lie within its first `share`."""
    reach, row = Reach(source), 0
    for index, file in enumerate(source.files):
        if file.kind == "document" and reach.of_document(index) >= share:
            continue
        for raw in walk_rows(source, Position(index, 0, row), stop=index + 1, past_limit=True):
            row = raw.next.row
            if reach(raw) >= share:
                break
            yield raw


@dataclass(frozen=True)
class _Look:
    """The work of one process on some rows: the held-out ones and their hashes, and the verdicts on all of them."""

    seed: int

    def __call__(self, source: Source, raws: list[RawRow]) -> tuple[list[tuple[int, FilteredRow]], Counter[str]]:
        found, counts = list[tuple[int, FilteredRow]](), Counter[str]()
        for raw in raws:
            if not _may_be_held_out(raw, source):
                continue
            filtered = filter_row(raw, source)
            text, verdict = filtered.text, filtered.verdict
            counts[verdict] += 1
            if verdict.startswith(BAD) and source.held_out is None and source.quarantine is not None:
                quarantine(source.quarantine, raw, verdict.removeprefix(BAD))
            if text is not None and (source.held_out is None or verdict == HELD_OUT):
                found.append((text_hash(text, self.seed), filtered))
        return found, counts


def _may_be_held_out(raw: RawRow, source: Source) -> bool:
    """Whether the hash of its text lets a row be held out: checked before the filters, most of which take longer."""
    if source.held_out is None or source.spec.filters.mask_pii:  # which changes the text
        return True
    try:
        record = to_record(parse(raw), spec=source.spec, name=source.name, row_id="")
        return source.held_out.holds(held_out_by(record))
    except BadRow:
        return False


class _Least:
    """The items of least hash that hold `tokens` positions; no more of them are kept, nor tokenised.

    refused: by how much the counts of verdicts change for rows that gave no item.
    """

    def __init__(self, make: Make, tokens: int) -> None:
        self._make, self._tokens = make, tokens
        self._hashes: list[int] = []
        self._kept: list[Item] = []
        self._waiting: list[tuple[int, FilteredRow]] = []
        self._bound = 2**64
        self.refused = Counter[str]()

    def add(self, found: Sequence[tuple[int, FilteredRow]]) -> None:
        """Add held-out rows with their hashes."""
        self._waiting += [one for one in found if one[0] < self._bound]
        if len(self._waiting) >= TOKENISED_AT_ONCE:
            self._tokenise()

    def items(self) -> list[Item]:
        """Those that are kept, least hash first."""
        self._tokenise()
        return self._kept

    def _tokenise(self) -> None:
        hashes, items = self._hashes, self._kept
        made = self._make([filtered for _, filtered in self._waiting])
        for (hashed, filtered), item in zip(self._waiting, made, strict=True):
            if isinstance(item, str):
                self.refused.update({filtered.verdict: -1, f"{BAD}{item}": 1})
                continue
            hashes.append(hashed)
            items.append(item)
        order = np.zeros(len(hashes), ORDER)
        order["hash"] = hashes
        given = np.array([positions(item) for item in items], np.int64)
        chosen = first(order, given, self._tokens, math.inf)
        if given[chosen].sum() >= self._tokens:
            self._bound = hashes[chosen[-1]]
        self._hashes, self._kept = [hashes[i] for i in chosen], [items[i] for i in chosen]
        self._waiting = []
