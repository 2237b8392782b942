"""Documents of one source read from its files as they are: dealt to streams, shuffled through a buffer, tokenised.

Over its passes a source is one endless sequence of rows; logical stream s of S takes every S-th of it. Where there are
many files, whole files are dealt instead, so that no stream reads what it does not need. A stream shuffles block by
block: it reads its share of the buffer, permutes it by a derived seed, gives it out, and reads on. Its state is where
the block began and how far it got, so a resume reads at most one block again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.data import decontamination
from lifecycle.data.broken import BAD, refuse_broken
from lifecycle.data.files import File
from lifecycle.data.judge import HELD_OUT, judge
from lifecycle.data.quarantine import quarantine
from lifecycle.data.readers import Position, RawRow, rows
from lifecycle.data.seeds import derive
from lifecycle.data.source import Source, among
from lifecycle.data.stream import Exhausted
from lifecycle.errors import UserError

Encode = Callable[[list[str]], Sequence[NDArray[np.int32]]]
FILES_PER_STREAM = 4  # from this many files a stream on, files are dealt whole: shares then differ by a few percent
ENCODE_AT_ONCE = 64  # texts tokenised together: enough to amortise the call, few enough to start soon


class RawDocuments:
    """Documents of `source` that stream `stream` of `streams` reads; see the module's text.

    `held` chooses the side of the held-out split: False gives training documents, True validation documents.
    `reading` is told, before each row, the file and line that it is at (for the report of a dying worker).
    """

    def __init__(
        self,
        source: Source,
        encode: Encode,
        *,
        stream: int,
        streams: int,
        seed: int,
        buffer: int,
        shuffle: bool = True,
        held: bool = False,
        state: dict[str, Any] | None = None,
        reading: Callable[[int, int], None] | None = None,
    ) -> None:
        self.source, self.name = source, source.name
        self._encode, self._reading = encode, reading
        self._stream, self._streams = stream, streams
        self._seed, self._shuffle, self._held = seed, shuffle, held
        self._block_rows = max(1, buffer // streams)
        self._leaves_out, known = source.leaves_out(), source.left_out_counts
        # Rows named by their number in the source need its files whole and in their own order.
        by_number = bool(known) or source.spec.max_rows is not None or source.rows is not None
        self._in_order = not shuffle or by_number
        self._by_file = not self._in_order and len(source.files) >= FILES_PER_STREAM * streams
        known = known if stream == 0 else {}
        state = state or {"epoch": 0, "shift": 0, "position": [0, 0, 0], "counts": known, "index": 0}
        self._epoch, self._shift = state["epoch"], state["shift"]
        self._order_of: tuple[int, int] | None = None
        self._ordered: tuple[File, ...] = ()
        self._position = Position(*state["position"])
        self._counts = Counter(state["counts"])
        self._anchor = {k: v for k, v in state.items() if k != "index"}
        self._begun_at = self.passes_read()  # where the current block began
        self._reader: Iterator[RawRow] | None = None  # stays open from block to block: a compressed file has no way in
        self._texts: list[str] = []
        self._ready: deque[NDArray[np.int32]] = deque()
        self._index = 0
        if state["index"]:
            self._read_block()
            self._index = state["index"]

    def next(self) -> NDArray[np.int32]:
        """Ids of the next document with its marks; raises `Exhausted` past the source's `max_epochs`."""
        while not self._ready:
            if self._index >= len(self._texts):
                self._read_block()
            chunk = self._texts[self._index : self._index + ENCODE_AT_ONCE]
            self._ready.extend(self._encode(chunk))
        self._index += 1
        return self._ready.popleft()

    def texts(self) -> Iterator[str]:
        """The texts themselves, untokenised, until the source is exhausted."""
        while True:
            try:
                self._read_block()
            except Exhausted:
                return
            yield from self._texts

    def state(self) -> dict[str, Any]:
        """Plain state: where the current block began, and how many of its documents were given out."""
        if self._index >= len(self._texts):  # the block is used up: the next one begins where the reader stands
            return self._mark() | {"index": 0}
        return self._anchor | {"index": self._index}

    def totals(self) -> dict[str, Any]:
        """Rows read in the first pass, dropped and bad ones among them by reason, and passes given out."""
        given = self._index / len(self._texts) if self._texts else 1.0
        return {"epochs": self._begun_at + given * (self.passes_read() - self._begun_at), "counts": dict(self._counts)}

    def passes_read(self) -> float:
        """Passes that lie before the reader."""
        return self._epoch + _share_read(self._position, self._files(self._epoch))

    def _mark(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "shift": self._shift,
            "position": list(self._position),
            "counts": dict(self._counts),
        }

    def _files(self, epoch: int) -> tuple[File, ...]:
        """The files of a pass in the order they are read: reshuffled each pass, dealt whole where there are many."""
        if self._order_of != (epoch, self._shift):  # asked for at every step
            self._order_of, self._ordered = (epoch, self._shift), self._shuffled(epoch)
        return self._ordered

    def _shuffled(self, epoch: int) -> tuple[File, ...]:
        files = self.source.files
        if self._in_order:
            return files
        rng = np.random.Generator(np.random.Philox(derive(self._seed, "files", self.name, epoch)))
        order = rng.permutation(len(files))
        if self._by_file:
            order = np.array([f for i, f in enumerate(order) if (i + self._shift) % self._streams == self._stream])
        return tuple(files[i] for i in order)

    def _read_block(self) -> None:
        """Read the next block of documents; over a pass's end only if the pass has nothing left for this stream."""
        empty_passes = 0
        while True:
            limit = self.source.spec.max_epochs
            if limit is not None and self._epoch >= limit:
                raise Exhausted(self.name)
            self._anchor, self._begun_at = self._mark(), self.passes_read()
            block = self._epoch, self._position
            texts, ended = self._read_texts()
            if ended:
                self._shift = (self._shift + self._dealt()) % self._streams
                self._epoch, self._position = self._epoch + 1, Position(0, 0, 0)
                empty_passes += 1
            if texts:
                break
            if empty_passes > self._streams:
                raise UserError(self._nothing_usable())
        order = self._order(len(texts), *block)
        self._texts, self._index = [texts[i] for i in order], 0
        self._ready.clear()

    def _order(self, size: int, epoch: int, start: Position) -> Iterable[int]:
        if not self._shuffle:
            return range(size)
        seed = derive(self._seed, "block", self.name, epoch, self._stream, start.file, start.row)
        return np.random.Generator(np.random.Philox(seed)).permutation(size).tolist()

    def _dealt(self) -> int:
        """How many rows, or files, the pass that ends here has dealt to all streams."""
        if self.source.rows is not None:
            return len(self.source.rows)
        return len(self.source.files) if self._by_file else self._position.row

    def _wanted(self) -> Callable[[int], bool]:
        shift, streams, stream, leaves_out = self._shift, self._streams, self._stream, self._leaves_out
        if self._by_file:
            return lambda ordinal: True
        if self.source.rows is not None:  # dealt by their place among these, or a stream might never have one
            mine = self.source.rows[(stream - shift) % streams :: streams]
            return among(np.setdiff1d(mine, self.source.left_out_rows))
        if not self.source.left_out_counts:
            return lambda ordinal: (ordinal + shift) % streams == stream
        return lambda ordinal: (ordinal + shift) % streams == stream and not leaves_out(ordinal)

    def _read_texts(self) -> tuple[list[str], bool]:
        """Up to a block of usable texts from where the reader stands, and whether the pass ended there."""
        texts: list[str] = []
        limit = self.source.spec.max_rows
        self._reader = self._reader or self._walk()
        for raw in self._reader:
            if limit is not None and raw.ordinal >= limit:
                self._position = raw.next
                break
            if self._reading is not None:
                self._reading(raw.ordinal, raw.line)
            self._position = raw.next
            text = self._usable(raw)
            if text is not None:
                texts.append(text)
                if len(texts) == self._block_rows:
                    return texts, False
        self._reader = None
        if limit is not None:  # every stream must find the same number of rows, also one that came to the end first
            self._position = self._position._replace(row=min(limit, self._position.row))
        refuse_broken(self.source, self._counts, before=self._position.row, at_end=True)
        return texts, True

    def _walk(self) -> Iterator[RawRow]:
        """The stream's rows of the pass; at its end the position tells how many rows the pass had."""
        on_damage = self.source.bad_rows.damaged_files
        files, wanted = self._files(self._epoch), self._wanted()
        self._position = yield from rows(files, self._position, wanted=wanted, on_damage=on_damage)

    def _usable(self, raw: RawRow) -> str | None:
        """The row's text, or None if it is bad, filtered out, or on the other side of the held-out split."""
        text, verdict, contaminated, _ = judge(raw, self.source)
        if self._epoch == 0:  # later passes meet the same rows again
            self._counts[verdict] += 1
            if contaminated and self.source.contaminated is not None:
                decontamination.record(self.source.contaminated, raw, contaminated)
        if verdict.startswith(BAD):
            if self._epoch == 0 and self.source.quarantine is not None:
                quarantine(self.source.quarantine, raw, verdict.removeprefix(BAD))
            refuse_broken(self.source, self._counts, before=self._position.row, at_end=False)
        return text if (verdict == HELD_OUT) == self._held else None

    def _nothing_usable(self) -> str:
        counts = ", ".join(f"{k.rstrip(':')} {n}" for k, n in sorted(self._counts.items())) or "no rows at all"
        side = "validation" if self._held else "training"
        return (
            f"data.sources.{self.name} has no usable {side} row in {len(self.source.files)} file(s) ({counts}): "
            "check path, format, fields and filters"
        )


def _share_read(position: Position, files: Sequence[File]) -> float:
    """Roughly the share of a pass that lies before `position`, by file sizes."""
    total = sum(file.size for file in files)
    if not total or position.file >= len(files):
        return 0.0
    before = sum(file.size for file in files[: position.file])
    return (before + min(position.offset, files[position.file].size)) / total
