"""Prepared sources: documents tokenised once into memory-mapped shards, read through a full permutation.

    outputs/<run>/prepared/<source>/{training,validation}/<part>.tokens     uint16 or uint32 ids, documents end to end
                                                          <part>.ends.npy   where each document ends in the part
                                                          meta.json         counts; written last

Document k of pass e is the permutation's k-th element under a key derived from the pass, so the state of a stream is
one number, and a resume costs the same anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.permutation import permute
from lifecycle.data.seeds import derive
from lifecycle.data.source import Source
from lifecycle.data.stream import Exhausted
from lifecycle.data.tokenizer import Tokenizer, TokenizerRecipe, load
from lifecycle.errors import UserError

LOOKED_UP_AT_ONCE = 512  # elements of the permutation computed together


@dataclass(frozen=True)
class Shards:
    """The prepared documents of one side of one source."""

    folder: Path
    parts: Sequence[str]
    dtype: str
    documents: int
    tokens: int

    @cached_property
    def _maps(self) -> list[NDArray[Any]]:
        return [_map(self.folder / f"{part}.tokens", np.dtype(self.dtype)) for part in self.parts]

    @cached_property
    def _ends(self) -> list[NDArray[np.int64]]:
        return [np.asarray(np.load(self.folder / f"{part}.ends.npy", mmap_mode="r")) for part in self.parts]

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        return np.cumsum([0] + [len(ends) for ends in self._ends])

    def document(self, index: int) -> NDArray[np.int32]:
        """Ids of document `index`, with its marks."""
        part = int(np.searchsorted(self._first, index, side="right")) - 1
        ends, at = self._ends[part], index - int(self._first[part])
        start = int(ends[at - 1]) if at else 0
        return self._maps[part][start : int(ends[at])].astype(np.int32)

    def __getstate__(self) -> dict[str, Any]:
        keep = ("folder", "parts", "dtype", "documents", "tokens")
        return {key: self.__dict__[key] for key in keep}


@dataclass(frozen=True)
class Prepared:
    """One source of a prepared run."""

    training: Shards
    validation: Shards
    counts: dict[str, int]


class PreparedDocuments:
    """Training documents that stream `stream` of `streams` reads: every S-th of the endless permuted sequence."""

    def __init__(
        self,
        shards: Shards,
        max_epochs: float | None,
        stream: int,
        streams: int,
        seed: int,
        state: dict[str, Any] | None,
        *,
        name: str = "",
        counts: dict[str, int] | None = None,
    ) -> None:
        self.name = name
        self._shards, self._max_epochs, self._seed = shards, max_epochs, seed
        self._streams, self._counts = streams, counts or {}
        self._next = state["next"] if state else stream
        self._counted = stream == 0  # the counts are the source's, not a stream's: stream 0 reports them
        self._block: NDArray[np.int64] = np.zeros(0, np.int64)
        self._at = 0

    def next(self) -> NDArray[np.int32]:
        """Ids of the next document; raises `Exhausted` past `max_epochs`."""
        size = self._shards.documents
        if self._max_epochs is not None and self._next >= self._max_epochs * size:
            raise Exhausted(self.name)
        if self._at == len(self._block):
            self._block, self._at = self._look_up(), 0
        index = int(self._block[self._at])
        self._at += 1
        self._next += self._streams
        return self._shards.document(index)

    def _look_up(self) -> NDArray[np.int64]:
        """Document numbers of the next elements of this stream, within the pass that they begin in."""
        size = self._shards.documents
        epoch = self._next // size
        positions = np.arange(
            self._next, min((epoch + 1) * size, self._next + LOOKED_UP_AT_ONCE * self._streams), self._streams
        )
        return permute(positions - epoch * size, size, derive(self._seed, "permutation", self.name, epoch))

    def state(self) -> dict[str, Any]:
        """Plain state: the next element of the sequence."""
        return {"next": self._next}

    def totals(self) -> dict[str, Any]:
        """Passes begun, and what was counted when the source was prepared."""
        return {"epochs": self._next / self._shards.documents, "counts": self._counts if self._counted else {}}


def _map(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    # asarray: the class memmap makes each slice of it several times as dear
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.zeros(0, dtype)


def open_shards(folder: Path) -> Shards:
    """One side of a prepared source; raises `UserError` where it is unfinished."""
    meta = _meta(folder)
    return Shards(folder, tuple(meta["parts"]), meta["dtype"], meta["documents"], meta["tokens"])


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.exists():
        raise UserError(f"{folder} is not a finished prepared source (no meta.json): run stage=prepare again")
    meta: dict[str, Any] = json.loads(path.read_text())
    return meta


def prepared_tokenizer(run: str, wanted: str | TokenizerRecipe) -> Tokenizer:
    """The tokenizer that made the shards of run folder `run`; raises `UserError` where it prepared nothing, or where
    `wanted` lies on this machine, as a parent's does, and is another one."""
    made_by = load(str(_folder(run) / "tokenizer"))
    here = isinstance(wanted, str) and Path(wanted).expanduser().exists()
    if here and load(str(wanted)).sha256 != made_by.sha256:
        raise UserError(
            f"data.prepared={run} holds the ids of another tokenizer than {wanted}, the one of this run: prepare the "
            "data again with it (stage=prepare init_from=PARENT, or data.tokenizer=FOLDER), under another run=NAME"
        )
    return made_by


def _folder(run: str) -> Path:
    folder = Path(run)
    if not folder.exists() and not folder.is_absolute():
        folder = Path("outputs") / run
    if not (folder / "prepared").is_dir():
        raise UserError(
            f"data.prepared={run}: {folder / 'prepared'} does not exist; make it with stage=prepare run={run}"
        )
    return folder


def open_prepared(run: str, sources: list[Source], may_lack: Collection[str] = ()) -> dict[str, Prepared]:
    """The prepared form of `sources` in run folder `run`, but for those of `may_lack` that it does not have; raises
    `UserError` naming what does not fit."""
    folder = _folder(run)
    have = sorted(p.name for p in (folder / "prepared").iterdir() if p.is_dir())
    sources = [s for s in sources if s.name in have or s.name not in may_lack]
    faults = [f"{s.name}: not in {run} (it has {', '.join(have)})" for s in sources if s.name not in have]
    stale = [
        f"{s.name}: its files or their treatment (format, fields, filters, validation, max_rows, decontaminate) changed"
        for s in sources
        if s.name in have and _meta(folder / "prepared" / s.name / "training")["fingerprint"] != s.fingerprint
    ]
    if faults or stale:
        raise UserError(
            f"data.prepared={run} does not fit data.sources: {'; '.join(faults + stale)}. Run stage=prepare again, "
            "with this run's init_from if it has one: its evaluation sets are inherited"
        )
    out = {}
    for source in sources:
        side = folder / "prepared" / source.name
        meta = _meta(side / "training")
        out[source.name] = Prepared(open_shards(side / "training"), open_shards(side / "validation"), meta["counts"])
        if not out[source.name].training.documents:
            raise UserError(f"data.sources.{source.name} has no training document in prepared run {run}")
    return out
