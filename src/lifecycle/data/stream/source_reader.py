"""One reader of a source for all logical streams of this process: it reads each block once for all of them.

    reader = SourceReader(source, at={0: START, 1: START}, streams=2, seed=1, buffer=10_000)
    reader.share(1)        # rows of stream 1 in its next block, and where it goes on after them

Streams advance at different rates, some documents apart; the rows of a block are kept for the streams that are behind.
Reading begins at the stream furthest behind. A stream that is more than `MOST_WAITING` blocks behind gets a reading
position of its own, so that memory is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import NamedTuple

from lifecycle.data.clean.filter_row import HELD_OUT, filter_row
from lifecycle.data.clean.source import Source
from lifecycle.data.clean.walk import RowWalk
from lifecycle.data.read.bytes.stored import Stored
from lifecycle.data.read.rows.readers import Opened, Position, RawRow, rows
from lifecycle.data.stream.assignment import Assignment, PlaceOf

MOST_WAITING = 8  # blocks that are kept for a stream that is behind

Reading = Callable[[int, int], None]  # called with the number and the line of each row that is read


class Place(NamedTuple):
    """The beginning of a block: the pass, the block's number in it, the position of its first row, and the share of the
    pass before it."""

    epoch: int
    block: int
    position: Position
    passed: float

    @property
    def epochs(self) -> float:
        """Passes before the block, a fraction for the pass that it is in."""
        return self.epoch + self.passed

    @property
    def name(self) -> tuple[int, int]:
        """Pass and block."""
        return self.epoch, self.block


START = Place(0, 0, Position(0, 0, 0), 0.0)


class Share(NamedTuple):
    """Rows of one stream in one block, in the order of the files. begin, after: of the block and of the next one.
    places: wanted rows of the pass up to the end of the block, over all streams."""

    rows: list[RawRow]
    begin: Place
    after: Place
    places: int


class SourceReader:
    """Reads `source` for some of the `streams` streams that share it: those in `at`, each from its place there on.

    buffer: rows that are shuffled together, over all streams; shuffle False: rows come in the order of the files.
    """

    def __init__(
        self,
        source: Source,
        *,
        at: Mapping[int, Place],
        streams: int,
        seed: int,
        buffer: int,
        shuffle: bool = True,
        reading: Reading | None = None,
    ) -> None:
        self.source, self.reading = source, reading
        self.assignment = Assignment(source, streams=streams, seed=seed, buffer=buffer, shuffle=shuffle)
        self._next = dict(at)  # the block that is read next for each stream
        self._waiting: dict[int, deque[Share]] = {stream: deque() for stream in at}
        self._readers: dict[tuple[int, int], Iterator[dict[int, Share]]] = {}  # by the block that each comes to next

    def share(self, stream: int) -> Share:
        """The next share of a stream; passes follow each other without an end."""
        waiting = self._waiting[stream]
        while not waiting:
            self._read()
        return waiting.popleft()

    def has_usable(self, *, held: bool) -> bool:
        """Whether the source has a training row, or (held) a held-out one; it is read up to the first such row."""
        return self._has_held_out if held else self._has_training

    @cached_property
    def _has_held_out(self) -> bool:
        return any(verdict == HELD_OUT for verdict in self._verdicts())

    @cached_property
    def _has_training(self) -> bool:
        return any(verdict.startswith("kept:") for verdict in self._verdicts())

    def _verdicts(self) -> Iterator[str]:
        every = Assignment(self.source, streams=1, seed=0, buffer=self.assignment.block_places, shuffle=False)
        for raw, _ in _walk(every, 0, Position(0, 0, 0), wanted=lambda place: True):
            yield filter_row(raw, self.source).verdict

    def _read(self) -> None:
        """Read one block for all streams whose next block it is: the earliest block that a stream with room needs."""
        ready = [stream for stream, waiting in self._waiting.items() if len(waiting) < MOST_WAITING]
        begin = min((self._next[stream] for stream in ready), key=lambda place: place.name)
        takers = [stream for stream in ready if self._next[stream].name == begin.name]
        reader = self._readers.pop(begin.name, None) or self._blocks(begin)
        shares = next(reader)
        for stream in takers:
            self._waiting[stream].append(shares[stream])
            self._next[stream] = shares[stream].after
        self._readers.setdefault(self._next[takers[0]].name, reader)
        wanted = {place.name for place in self._next.values()}
        self._readers = {at: one for at, one in self._readers.items() if at in wanted}

    def _blocks(self, begin: Place) -> Iterator[dict[int, Share]]:
        """The shares of every stream in the blocks from `begin` on."""
        size = self.assignment.block_places
        while True:
            mine = self._own(begin.epoch)
            found: dict[int, list[RawRow]] = {stream: [] for stream in self._next}
            end = begin.block * size
            files = list[Stored]()  # the one that is read is the last
            for raw, place in _walk(self.assignment, begin.epoch, begin.position, wanted=mine, opened=files.append):
                del files[:-1]
                end = place + 1
                owner = self.assignment.owners(begin.epoch, begin.block)[place % size]
                if owner in found:
                    found[owner].append(raw)
                if self.reading is not None:
                    self.reading(raw.ordinal, raw.line)
                if end % size == 0:
                    after = Place(
                        begin.epoch, begin.block + 1, raw.next, self._passed(begin.epoch, raw, end, files[-1].tell())
                    )
                    yield {stream: Share(own, begin, after, end) for stream, own in found.items()}
                    begin, found = after, {stream: [] for stream in found}
            after = Place(begin.epoch + 1, 0, Position(0, 0, 0), 0.0)
            yield {stream: Share(own, begin, after, end) for stream, own in found.items()}
            begin = after

    def _own(self, epoch: int) -> Callable[[int], bool]:
        """A test whether the row at a place is read: rows of this process's streams, and the last row of each block,
        whose position is that of the block's end."""
        size, owners, streams = self.assignment.block_places, self.assignment.owners, frozenset(self._next)
        at, of_block = -1, memoryview(b"")

        def mine(place: int) -> bool:
            nonlocal at, of_block
            block, inside = divmod(place, size)
            if block != at:
                at, of_block = block, owners(epoch, block)
            return of_block[inside] in streams or inside == size - 1

        return mine

    def _passed(self, epoch: int, raw: RawRow, places: int, read: int) -> float:
        """The share of a pass up to the end of a row: by rows where they are counted, else by bytes as stored, of which
        `read` of the row's file are read."""
        if self.assignment.numbering is not None:
            return places / max(int(self.assignment.numbering.sizes.sum()), 1)
        files = [self.source.files[index] for index in self.assignment.files(epoch)]
        at, total = raw.next, sum(file.size for file in files)
        before = sum(file.size for file in files[: at.file])
        if at.file < len(files):
            file = files[at.file]
            plain = file.compression is None and file.is_utf8
            inside = raw.share * file.size if raw.share is not None else at.offset if plain else read
            before += min(inside, file.size) if at.offset else 0
        return before / total if total else 0.0


def _walk(
    assignment: Assignment, epoch: int, begin: Position, *, wanted: Callable[[int], bool], opened: Opened | None = None
) -> Iterator[tuple[RawRow, int]]:
    """The rows of a pass from a position on whose places are `wanted`, with their places."""
    order, numbering = assignment.files(epoch).tolist(), assignment.numbering
    files = [assignment.source.files[file] for file in order]
    on_damage, at = assignment.source.bad_rows.damaged_files, begin
    for index in range(begin.file, len(files)):
        place_of: PlaceOf = _itself
        chosen = wanted
        if numbering is not None:
            if not numbering.sizes[order[index]]:
                at = Position(index + 1, 0, 0)
                continue
            if not at.offset:
                at = Position(index, 0, int(numbering.first[order[index]]))
            place_of = numbering.place_of(order[index], int(numbering.sizes[order[:index]].sum()))
            chosen = partial(_both, place_of, wanted)
        walk = RowWalk(rows(files, at, wanted=chosen, on_damage=on_damage, stop=index + 1, opened=opened))
        for raw in walk:
            yield raw, place_of(raw.ordinal)
        at = walk.end


def _itself(row: int) -> int:
    return row


def _both(place_of: PlaceOf, wanted: Callable[[int], bool], row: int) -> bool:
    return (place := place_of(row)) >= 0 and wanted(place)
