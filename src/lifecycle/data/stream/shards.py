"""The files of one side of a prepared source, written and read: items in parts that are mapped into memory.

    <part>.tokens     uint16 or uint32 ids of all sequences, end to end
    <part>.ends.npy   where each sequence ends; a pair has two, the chosen side first
    <part>.order.npy  held out: which items are measured first

and in other views than `text`, where items have such:

    <part>.trained    one byte a token: whether it is trained as a label
    <part>.weights    float32: of each label in the loss
    <part>.facts      what an item is beside its tokens, JSON, end to end, and where each ends (.facts.npy)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from lifecycle.batch import Example, Item
from lifecycle.batch.item_arrays import PAIRED, SIDES, facts, made_of, sequences, trained_of, weight_of
from lifecycle.data.clean.held_out import ORDER, first
from lifecycle.data.stream.documents import ENCODE_AT_ONCE, Usable
from lifecycle.data.stream.packing import Packing
from lifecycle.data.views import Maker
from lifecycle.system import owner

KINDS = (".tokens", ".ends.npy", ".order.npy", ".trained", ".weights", ".facts", ".facts.npy")
FILLED_AT_ONCE = 1 << 20  # tokens


@dataclass(frozen=True)
class Shards:
    """The prepared items of one side of one source. documents: how many there are; tokens: of all sequences."""

    folder: Path
    parts: Sequence[str]
    dtype: str
    documents: int
    tokens: int
    view: str = "text"

    @cached_property
    def _ids(self) -> list[NDArray[Any]]:
        return [_map(self.folder / f"{part}.tokens", np.dtype(self.dtype)) for part in self.parts]

    @cached_property
    def _ends(self) -> list[NDArray[np.int64]]:
        return [np.asarray(np.load(self.folder / f"{part}.ends.npy", mmap_mode="r")) for part in self.parts]

    @cached_property
    def _trained(self) -> list[NDArray[Any] | None]:
        return [_map_if_there(self.folder / f"{part}.trained", np.dtype(np.bool_)) for part in self.parts]

    @cached_property
    def _weights(self) -> list[NDArray[Any] | None]:
        return [_map_if_there(self.folder / f"{part}.weights", np.dtype(np.float32)) for part in self.parts]

    @cached_property
    def _facts(self) -> list[tuple[NDArray[Any], NDArray[np.int64]] | None]:
        paths = [self.folder / f"{part}.facts" for part in self.parts]
        ends = [np.load(path.with_suffix(".facts.npy")) if path.exists() else None for path in paths]
        return [
            None if end is None else (_map(path, np.dtype(np.uint8)), end)
            for path, end in zip(paths, ends, strict=True)
        ]

    @property
    def _sides(self) -> int:
        return SIDES if self.view in PAIRED else 1

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        return np.cumsum([0] + [len(ends) // self._sides for ends in self._ends])

    def item(self, index: int) -> Item:
        """Item `index`."""
        part = int(np.searchsorted(self._first, index, side="right")) - 1
        at = index - int(self._first[part])
        if self.view == "text":  # at once: it is read by the million
            ends = self._ends[part]
            return Example(ids=self._ids[part][int(ends[at - 1]) if at else 0 : int(ends[at])].astype(np.int32))
        sides = [self._example(part, at * self._sides + side) for side in range(self._sides)]
        return made_of(sides, self._known(part, at))

    def _example(self, part: int, at: int) -> Example:
        ends = self._ends[part]
        place = slice(int(ends[at - 1]) if at else 0, int(ends[at]))
        trained, weights = self._trained[part], self._weights[part]
        return Example(
            ids=self._ids[part][place].astype(np.int32),
            trained=None if trained is None else trained[place],
            weight=None if weights is None else weights[place],
        )

    def _known(self, part: int, at: int) -> dict[str, Any] | None:
        if (known := self._facts[part]) is None:
            return None
        written, ends = known
        found: dict[str, Any] | None = orjson.loads(written[int(ends[at - 1]) if at else 0 : int(ends[at])].tobytes())
        return found

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """(items,) positions of each, in the view `prompt` its tokens and one more, which has to follow."""
        lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(ends, prepend=0) for ends in self._ends)])
        return lengths + 1 if self.view == "prompt" else (lengths - 1).reshape(-1, self._sides).sum(1)

    def positions(self, packing: Packing, row_length: int) -> int:
        """Positions of one pass in rows of this length, with their padding; of prompts, their number."""
        if self.view == "text":
            return self.tokens - self.documents
        fits = self._sizes <= row_length
        if packing.counts:
            return int(fits.sum())
        sizes: list[int] = self._sizes[fits].tolist()
        if packing.long_examples == "shorten":
            short = (packing.fit(self.item(int(index)), row_length) for index in np.flatnonzero(~fits))
            sizes += [item.size for item in short if item is not None]
        return packing.positions(sizes, row_length)

    def measured(self, tokens: int, share: float) -> list[Item]:
        """The items that `held_out.held_out_items` chooses from the rows that these were made from."""
        orders = [self.folder / f"{part}.order.npy" for part in self.parts]
        order = np.concatenate([np.zeros(0, ORDER), *(np.load(path) for path in orders if path.exists())])
        given = self._sizes - 1 if self.view == "prompt" else self._sizes  # as `batch.positions`
        return [self.item(int(index)) for index in first(order, given, tokens, share)]

    def __getstate__(self) -> dict[str, Any]:
        keep = ("folder", "parts", "dtype", "documents", "tokens", "view")
        return {key: self.__dict__[key] for key in keep}


class ShardWriter:
    """Appends the items of usable rows to one part of one side. `refused` is told of rows that give none, and why."""

    def __init__(self, folder: Path, part: int, make: Maker, refused: Callable[[Usable, str], None]) -> None:
        owner.check(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{part:02d}"
        for kind in KINDS:  # of a start under another view
            self._path.with_suffix(kind).unlink(missing_ok=True)
        self._dtype = np.dtype(dtype_of(make))
        self._make, self._refused = make, refused
        self._files = {".tokens": open(self._path.with_suffix(".tokens"), "wb")}
        self._waiting: list[tuple[Usable, tuple[int, float] | None]] = []
        self._items = self._tokens = 0
        self._ends: list[int] = []
        self._order: list[tuple[int, float]] = []
        self._facts: list[int] = []

    def add(self, row: Usable, place: tuple[int, float] | None) -> None:
        """`place`: of a held-out item in the order that such are measured in."""
        self._waiting.append((row, place))
        if len(self._waiting) == ENCODE_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        owner.check(self._path)
        made = self._make([row.filtered for row, _ in self._waiting])
        for (row, place), item in zip(self._waiting, made, strict=True):
            if isinstance(item, str):
                self._refused(row, item)
                continue
            self._write(item)
            if place is not None:
                self._order.append(place)
        self._waiting.clear()

    def _write(self, item: Item) -> None:
        self._items += 1
        for example in sequences(item):
            self._files[".tokens"].write(example.ids.astype(self._dtype).tobytes())
            if example.trained is not None or ".trained" in self._files:
                self._beside(".trained", np.bool_).write(trained_of(example).tobytes())
            if example.weight is not None or ".weights" in self._files:
                self._beside(".weights", np.float32).write(weight_of(example).tobytes())
            self._tokens += len(example.ids)
            self._ends.append(self._tokens)
        if (known := facts(item)) is not None:
            written = orjson.dumps(known)
            self._beside(".facts", None).write(written)
            self._facts.append((self._facts[-1] if self._facts else 0) + len(written))

    def _beside(self, kind: str, dtype: type[np.generic] | None) -> BinaryIO:
        """The file of what stands beside the ids; the tokens before it was begun have ones."""
        if kind not in self._files:
            self._files[kind] = open(self._path.with_suffix(kind), "wb")
            for start in range(0, self._tokens if dtype else 0, FILLED_AT_ONCE):
                self._files[kind].write(np.ones(min(FILLED_AT_ONCE, self._tokens - start), dtype).tobytes())
        return self._files[kind]

    def close(self) -> dict[str, int]:
        """Finish the part; its items and tokens."""
        owner.check(self._path)
        if self._waiting:
            self._flush()
        for file in self._files.values():
            file.close()
        np.save(self._path.with_suffix(".ends.npy"), np.array(self._ends, np.int64))
        if self._order:
            np.save(self._path.with_suffix(".order.npy"), np.array(self._order, ORDER))
        if self._facts:
            np.save(self._path.with_suffix(".facts.npy"), np.array(self._facts, np.int64))
        return {"documents": self._items, "tokens": self._tokens}


def dtype_of(make: Maker) -> str:
    """How the ids of a tokenizer lie in shards."""
    return "uint16" if make.tokenizer.vocab_size <= 2**16 else "uint32"


def _map(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    # asarray: the class memmap makes each slice of it several times as dear
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.zeros(0, dtype)


def _map_if_there(path: Path, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    return _map(path, dtype) if path.exists() else None
