"""One reader of a source for all logical streams of this process: it reads a block once for all of them.

    dealer = Dealer(source, at={0: START, 1: START}, streams=2, seed=1, buffer=10_000)
    dealer.share(1)        # rows of stream 1 in its next block, and where it goes on after them

Streams move at their own pace, some documents apart; the rows of a block wait for those that are behind. The reader
begins at the slowest. A stream that falls behind by more than `MOST_WAITING` blocks is read for apart, so memory is
bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import NamedTuple

from lifecycle.data.clean.filter_row import HELD_OUT, judge
from lifecycle.data.clean.source import Source
from lifecycle.data.clean.walk import RowWalk
from lifecycle.data.read.bytes.stored import Stored
from lifecycle.data.read.rows.readers import Opened, Position, RawRow, rows
from lifecycle.data.stream.dealing import Deal, PlaceOf

MOST_WAITING = 8  # blocks that are kept for a stream that is behind

Reading = Callable[[int, int], None]  # told the number and the line of the row that is read next


class Place(NamedTuple):
    """Where a block begins: the pass, the block's number in it, the first row, and the share of the pass before it."""

    epoch: int
    block: int
    position: Position
    passed: float

    @property
    def epochs(self) -> float:
        """Passes that lie before it."""
        return self.epoch + self.passed

    @property
    def name(self) -> tuple[int, int]:
        """Pass and block."""
        return self.epoch, self.block


START = Place(0, 0, Position(0, 0, 0), 0.0)


class Share(NamedTuple):
    """Rows of one stream in one block, as they lie in the files; `places`: rows dealt in the pass up to its end."""

    rows: list[RawRow]
    begin: Place
    after: Place
    places: int


class Dealer:
    """Reads `source` for the streams `at`, which begin at these places, of `streams` that share it; see the module."""

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
        self.deal = Deal(source, streams=streams, seed=seed, buffer=buffer, shuffle=shuffle)
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
        """Whether the source has a row for the training, or the held-out side: it is read up to the first."""
        return self._has_held_out if held else self._has_training

    @cached_property
    def _has_held_out(self) -> bool:
        return any(verdict == HELD_OUT for verdict in self._verdicts())

    @cached_property
    def _has_training(self) -> bool:
        return any(verdict.startswith("kept:") for verdict in self._verdicts())

    def _verdicts(self) -> Iterator[str]:
        every = Deal(self.source, streams=1, seed=0, buffer=self.deal.block_places, shuffle=False)
        for raw, _ in _walk(every, 0, Position(0, 0, 0), wanted=lambda place: True):
            yield judge(raw, self.source).verdict

    def _read(self) -> None:
        """Read one block, for all streams that come to it next: that of the stream furthest behind with room."""
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
        size = self.deal.block_places
        while True:
            mine = self._own(begin.epoch)
            found: dict[int, list[RawRow]] = {stream: [] for stream in self._next}
            end = begin.block * size
            files = list[Stored]()  # the one that is read is the last
            for raw, place in _walk(self.deal, begin.epoch, begin.position, wanted=mine, opened=files.append):
                del files[:-1]
                end = place + 1
                owner = self.deal.owners(begin.epoch, begin.block)[place % size]
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
        """Whether a row is read: one of this process's streams, or the last of a block, which tells where it ends."""
        size, owners, streams = self.deal.block_places, self.deal.owners, frozenset(self._next)
        at, known = -1, memoryview(b"")

        def mine(place: int) -> bool:
            nonlocal at, known
            block, inside = divmod(place, size)
            if block != at:
                at, known = block, owners(epoch, block)
            return known[inside] in streams or inside == size - 1

        return mine

    def _passed(self, epoch: int, raw: RawRow, places: int, read: int) -> float:
        """The share of a pass that lies before the end of a row: by rows where they are counted, else by bytes as the
        files hold them, of which `read` of its file are read."""
        if self.deal.numbering is not None:
            return places / max(int(self.deal.numbering.sizes.sum()), 1)
        files = [self.source.files[index] for index in self.deal.files(epoch)]
        at, total = raw.next, sum(file.size for file in files)
        before = sum(file.size for file in files[: at.file])
        if at.file < len(files):
            file = files[at.file]
            plain = file.compression is None and file.is_utf8
            inside = raw.share * file.size if raw.share is not None else at.offset if plain else read
            before += min(inside, file.size) if at.offset else 0
        return before / total if total else 0.0


def _walk(
    deal: Deal, epoch: int, begin: Position, *, wanted: Callable[[int], bool], opened: Opened | None = None
) -> Iterator[tuple[RawRow, int]]:
    """The rows of a pass from a position on whose places are `wanted`, with their places."""
    order, numbering = deal.files(epoch).tolist(), deal.numbering
    files = [deal.source.files[file] for file in order]
    on_damage, at = deal.source.bad_rows.damaged_files, begin
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
