"""Items of one source, read from its files as they are: assigned to streams, shuffled, filtered, tokenised.

    rows of the stream in a block (`source_reader.py`) -> shuffled -> the usable ones -> items of the view

The state is the beginning of the current block and the number of its usable rows that were taken, so a resume reads one
block again. A row of which the view makes no item is a bad one, which shows only when the row is tokenised: the state
holds how many there were since the block began.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lifecycle.batch import Item
from lifecycle.data.clean import contamination_report
from lifecycle.data.clean.bad_rows import BAD, refuse_broken
from lifecycle.data.clean.filter_row import HELD_OUT, FilteredRow, filter_row
from lifecycle.data.clean.source import Source
from lifecycle.data.read.forms.options import shuffled
from lifecycle.data.read.quarantine import beginning, quarantine
from lifecycle.data.read.rows.readers import Position, RawRow
from lifecycle.data.stream.pieces import Exhausted, LeftOut
from lifecycle.data.stream.source_reader import START, Place, Share, SourceReader
from lifecycle.errors import UserError

Make = Callable[[Sequence[FilteredRow]], Sequence[Item | str]]
"""(usable rows) -> the item of each, or the reason why there is none."""

ENCODE_AT_ONCE = 64  # rows tokenised together at most: enough to amortise the call
ENCODE_CHARACTERS = 2**14  # of them: the first step of a run waits for the beginnings of all its streams and sources


class Usable(NamedTuple):
    """A row that passed the filters, and the beginning of the row as it was read, for the quarantine."""

    filtered: FilteredRow
    raw: RawRow


def place_in(state: dict[str, Any] | None) -> Place:
    """The place from which the stream of a state reads; the beginning of the source without a state."""
    return Place(state["epoch"], state["block"], Position(*state["position"]), state["passed"]) if state else START


def raw_documents(
    source: Source,
    make: Make,
    *,
    streams: int,
    states: Mapping[int, dict[str, Any] | None],
    seed: int,
    buffer: int,
    reading: Callable[[int, int], None] | None = None,
) -> dict[int, RawDocuments]:
    """Training items of a source for each stream in `states`, of `streams` in all, from its state on (None: from the
    beginning). One reader reads the files for all of them. buffer: rows shuffled together. reading: called with the
    number and the line of each row that is read."""
    reader = SourceReader(
        source,
        at={stream: place_in(state) for stream, state in states.items()},
        streams=streams,
        seed=seed,
        buffer=buffer,
        reading=reading,
    )
    return {
        stream: RawDocuments(reader, make, stream=stream, state=state, options_by=seed)
        for stream, state in states.items()
    }


class RawDocuments:
    """Items of `source` that stream `stream` reads; see the module's text.

    `held` chooses the side of the held-out split: False gives training documents, True validation documents.
    options_by: the seed that options are shuffled by, where the source asks for it; None: they stay as they are.
    """

    def __init__(
        self,
        reader: SourceReader,
        make: Make,
        *,
        stream: int,
        held: bool = False,
        state: dict[str, Any] | None = None,
        options_by: int | None = None,
    ) -> None:
        self.source, self.name = reader.source, reader.source.name
        self._options_by = options_by if reader.source.spec.shuffle_options else None
        self._reader, self._make, self._stream, self._held = reader, make, stream, held
        known = self.source.left_out_counts if stream == 0 else {}
        self._counts = Counter(state["counts"] if state else known)
        self._at = place_in(state)  # the next place to read
        self._anchor, self._begun_at = self._mark(), self._at.epochs  # where the current block began
        self.max_epochs = self.source.spec.max_epochs
        self._empty_passes = 0
        self._left_out = LeftOut(self._epochs)
        self._usable: list[Usable] = []
        self._ready: deque[Item | str] = deque()
        self._index = self._places = 0
        self._refused = Counter[str]()  # by how much they change the counts of the block's beginning
        if state and state["index"]:
            self._read_share()
            self._index = state["index"]
            self._refused = Counter(state.get("refused", {}))
            self._counts.update(self._refused)

    @classmethod
    def alone(
        cls, source: Source, make: Make, *, seed: int, buffer: int, shuffle: bool = True, held: bool = False
    ) -> RawDocuments:
        """All items of one side of a source, as a single stream reads them."""
        reader = SourceReader(source, at={0: START}, streams=1, seed=seed, buffer=buffer, shuffle=shuffle)
        return cls(reader, make, stream=0, held=held)

    def next(self) -> Item:
        """The next item; raises `Exhausted` past the source's `max_epochs`, `UserError` where it has no usable row."""
        while True:
            if self._is_used_up():
                raise Exhausted(self.name)
            while not self._ready:
                if self._index >= len(self._usable):
                    self._read_usable_block()
                self._ready.extend(self._make([self._in_order(row) for row in self._at_once()]))
            self._index += 1
            made = self._ready.popleft()
            if not isinstance(made, str):
                self._left_out.given()
                return made
            self._refuse(self._usable[self._index - 1], made)

    def _at_once(self) -> list[FilteredRow]:
        """The next rows of the block, as many as are tokenised together."""
        chunk, characters = list[FilteredRow](), 0
        for row in self._usable[self._index : self._index + ENCODE_AT_ONCE]:
            chunk.append(row.filtered)
            characters += len(row.filtered.text or "")
            if characters >= ENCODE_CHARACTERS:
                break
        return chunk

    def _in_order(self, row: FilteredRow) -> FilteredRow:
        """The row with its options in the order of this pass, where they are shuffled."""
        if self._options_by is None or row.record is None:
            return row
        return row._replace(record=shuffled(row.record, seed=self._options_by, visit=self._anchor["epoch"]))

    def texts(self) -> Iterator[str]:
        """The texts themselves, untokenised, until the source is exhausted."""
        return (row.text for row in self.usable() if row.text is not None)

    def usable(self) -> Iterator[FilteredRow]:
        """The rows that passed the filters, of which no item is made, until the source is exhausted."""
        while True:
            try:
                self._read_block()
            except Exhausted:
                return
            for row in self._usable:
                self._index += 1
                yield row.filtered

    def state(self) -> dict[str, Any]:
        """Plain state: where the current block began, and how many of its rows were taken."""
        if self._index >= len(self._usable):  # the block is used up: the next one begins at the reader's place
            return self._mark() | {"index": 0}
        refused = {"refused": dict(self._refused)} if self._refused else {}
        return self._anchor | {"index": self._index, **refused}

    def totals(self) -> dict[str, Any]:
        """Rows read in the first pass, dropped and bad ones among them by reason, and passes given out."""
        return {"epochs": self._epochs(), "counts": dict(self._counts)}

    def _epochs(self) -> float:
        given = self._index / len(self._usable) if self._usable else 1.0
        return self._begun_at + given * (self._at.epochs - self._begun_at)

    def _is_used_up(self) -> bool:
        """Whether the last, partial pass has reached the fraction in `max_epochs`: of 1.5, half a pass."""
        cap = self.max_epochs
        return cap is not None and self._anchor["epoch"] >= int(cap) and self._epochs() >= cap

    def _mark(self) -> dict[str, Any]:
        return {
            "epoch": self._at.epoch,
            "block": self._at.block,
            "position": list(self._at.position),
            "passed": self._at.passed,
            "counts": dict(self._counts),
        }

    def _read_usable_block(self) -> None:
        """`_read_block` of a source that must have a usable row, however few passes over it there are."""
        try:
            self._read_block()
        except Exhausted:
            if self._empty_passes and not self._reader.has_usable(held=self._held):
                raise UserError(self.nothing_usable()) from None
            raise

    def _read_block(self) -> None:
        """Read the next block in which the stream has a usable row; raises `Exhausted` behind the last pass."""
        while True:
            if self.max_epochs is not None and self._at.epoch >= self.max_epochs:
                raise Exhausted(self.name)
            share = self._read_share()
            if self._usable:
                self._empty_passes = 0
                return
            # A stream of few rows may have none that is usable; the source must have one.
            self._empty_passes += share.after.epoch - share.begin.epoch
            if self._empty_passes > 1 and not self._reader.has_usable(held=self._held):
                raise UserError(self.nothing_usable())

    def _read_share(self) -> Share:
        self._anchor, self._begun_at = self._mark(), self._at.epochs
        share = self._reader.share(self._stream)
        self._places = share.places
        self._usable, self._index = self._usable_rows(share), 0
        self._ready.clear()
        self._refused.clear()
        self._at = share.after
        return share

    def _usable_rows(self, share: Share) -> list[Usable]:
        begin = share.begin
        order = self._reader.assignment.order(begin.epoch, begin.block, self._stream, len(share.rows))
        rows = [(self._filtered(share.rows[i], share), share.rows[i]) for i in order]
        if share.after.epoch > begin.epoch:
            refuse_broken(self.source, self._counts, before=share.places, at_end=True)
        return [
            Usable(filtered, beginning(raw))
            for filtered, raw in rows
            if filtered.text is not None and (filtered.verdict == HELD_OUT) == self._held
        ]

    def _filtered(self, raw: RawRow, share: Share) -> FilteredRow:
        """Filter a row, and count its verdict."""
        if self._reader.reading is not None:
            self._reader.reading(raw.ordinal, raw.line)
        filtered = filter_row(raw, self.source)
        if share.begin.epoch == 0:  # later passes read the same rows again
            self._counts[filtered.verdict] += 1
            if filtered.contaminated and self.source.contaminated is not None:
                contamination_report.record(self.source.contaminated, raw, filtered.contaminated)
        if filtered.verdict.startswith(BAD):
            self._bad(raw, filtered.verdict.removeprefix(BAD), share.places)
        return filtered

    def _refuse(self, row: Usable, reason: str) -> None:
        """Count a row that the view makes no item of as a bad one. Raises `UserError` where there is no other."""
        if self._anchor["epoch"] == 0:
            change = {row.filtered.verdict: -1, f"{BAD}{reason}": 1}
            self._refused.update(change)
            self._counts.update(change)
        self._bad(row.raw, reason, self._places)
        if self._left_out.are_all():
            raise UserError(self.nothing_usable())

    def _bad(self, raw: RawRow, reason: str, places: int) -> None:
        if self._anchor["epoch"] == 0 and self.source.quarantine is not None:
            quarantine(self.source.quarantine, raw, reason)
        refuse_broken(self.source, self._counts, before=places, at_end=False)

    def nothing_usable(self) -> str:
        """The message on a source of which no row was usable, with what became of its rows."""
        counts = ", ".join(f"{k.rstrip(':')} {n}" for k, n in sorted(self._counts.items())) or "no rows at all"
        side = "validation" if self._held else "training"
        return (
            f"data.sources.{self.name} has no usable {side} row in {len(self.source.files)} file(s) ({counts}): "
            "check path, format, fields and filters"
        )
