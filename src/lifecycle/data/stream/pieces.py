"""Items of a source as pieces of at most a row, resumable in the middle of a text.

A source may be read so many times at most (`max_epochs`). That is a setting of the run that goes on, not of what was
read: a state says under which it was taken, so what was packed is packed again as it was, whatever the run says now.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Protocol

from lifecycle.batch import Example, Item
from lifecycle.batch.item_arrays import joined, split
from lifecycle.data.stream.packing import TEXT, Packing, Piece, part
from lifecycle.errors import UserError

MOST_IN_A_ROW = 1000  # items that may be left out one after the other, if they are more than a pass: then all are

State = dict[str, Any]


class Exhausted(Exception):
    """A source has been read as often as its `max_epochs` allows; `is_end`: and with it, all that there is to read."""

    def __init__(self, source: str, *, is_end: bool = False) -> None:
        super().__init__(source)
        self.source, self.is_end = source, is_end


class Documents(Protocol):
    """A resumable sequence of one source's items, endless where `max_epochs` is None."""

    name: str
    max_epochs: float | None

    def next(self) -> Item:
        """The next item; a sequence has its begin and end marks (at least two ids). Raises `Exhausted`."""

    def state(self) -> State:
        """Plain state from which the sequence goes on after the items already returned."""

    def totals(self) -> State:
        """What was read so far: rows, epochs, dropped and bad rows by reason."""


class LeftOut:
    """Counts items that are left out one after the other, and says when those are all that there is."""

    def __init__(self, epochs: Callable[[], float]) -> None:
        self._epochs = epochs
        self._since, self._in_a_row = 0.0, 0

    def given(self) -> None:
        """One was not left out."""
        self._in_a_row = 0

    def are_all(self) -> bool:
        """One more was left out; whether they were all of a pass."""
        self._since = self._since if self._in_a_row else self._epochs()
        self._in_a_row += 1
        return self._in_a_row > MOST_IN_A_ROW and self._epochs() > self._since + 1


class Pieces:
    """Items of one source as pieces of at most a row; remembers where in a text it stands.

    too_long: how many items were longer than a row, and `dropped` or `shortened`.
    """

    def __init__(
        self, documents: Documents, index: int, state: State | None = None, *, packing: Packing = TEXT
    ) -> None:
        self.documents, self.index, self.packing = documents, index, packing
        self.too_long = Counter[str](state.get("too_long", {}) if state else {})
        self._max_epochs = documents.max_epochs
        if state:
            documents.max_epochs = state["max_epochs"]
        self._returned: deque[Item] = deque(split(state, "returned") if state else ())
        self._before = documents.state()
        self._item: Item | None = None
        self._taken = 0
        self._left_out = LeftOut(lambda: float(documents.totals()["epochs"]))
        if state and state["skip"]:
            self._item = documents.next()
            self._taken = state["skip"]

    def bind(self) -> bool:
        """From here on the run's own `max_epochs` holds, and not that of the state; whether it is another."""
        changed = self.documents.max_epochs != self._max_epochs
        self.documents.max_epochs = self._max_epochs
        return changed

    def drain(self) -> list[Item]:
        """What was drawn from the documents and not given out: it comes no more."""
        begun = [self._rest()] if self._item is not None else []
        left = [*self._returned, *begun]
        self._returned.clear()
        self._item, self._taken = None, 0
        return left

    def peek(self, row_length: int) -> int:
        """Sizes of the next piece; 0 where there is none."""
        try:
            return min(self._head(row_length).size, row_length)
        except Exhausted:
            return 0

    def take_back(self, item: Item) -> None:
        """A piece that was not given out after all: it comes again before anything new."""
        self._returned.append(item)

    def next(self, row_length: int) -> Piece:
        """The next piece; a text longer than the row comes as several."""
        item = self._head(row_length)
        if item.size > row_length:  # of a text: others fit
            assert isinstance(item, Example)
            if self._returned:
                self._returned[0] = part(item, row_length, item.size)
            else:
                self._taken += row_length
            return Piece(part(item, 0, row_length), self.index)
        whole = self._returned.popleft() if self._returned else self._item
        if item is not whole and not self.packing.goes_on(item):
            self.too_long["shortened"] += 1
        if whole is self._item:
            self._item, self._taken = None, 0
        return Piece(item, self.index)

    def _head(self, row_length: int) -> Item:
        """What comes next: what is left of a text, or a whole item as it fits into a row."""
        while True:
            item = self._returned[0] if self._returned else self._open()
            if self.packing.goes_on(item):
                self._left_out.given()
                return item
            if (fitting := self.packing.fit(item, row_length)) is not None:
                self._left_out.given()
                return fitting
            self._leave_out(row_length)

    def _open(self) -> Item:
        """What is left of the item that was begun; the next one, if none was."""
        if self._item is None:
            self._before = self.documents.state()
            self._item = self.documents.next()
        return self._rest()

    def _rest(self) -> Item:
        assert self._item is not None
        if not self._taken:
            return self._item
        assert isinstance(self._item, Example)
        return part(self._item, self._taken, self._item.size)

    def _leave_out(self, row_length: int) -> None:
        """The next item is longer than a row, and is not given out. Raises `UserError` where all of them are."""
        self.too_long["dropped"] += 1
        if self._returned:
            self._returned.popleft()
        else:
            self._item = None
        if self._left_out.are_all():
            name, rule = self.documents.name, self.packing.long_examples
            raise UserError(
                f"data.sources.{name} has no example that fits into a row: {self.too_long['dropped']} are longer than "
                f"stage.sequence_length={row_length} (data.long_examples={rule}): raise it"
                + ("" if self.packing.counts or rule == "shorten" else ", or set data.long_examples=shorten")
            )

    def state(self) -> State:
        """Plain state and arrays; a text that was begun is read again and its first `skip` positions passed over."""
        begun = self._item is not None
        documents = self._before if begun else self.documents.state()
        return {
            "documents": documents,
            "skip": self._taken if begun else 0,
            "max_epochs": self.documents.max_epochs,
            **joined(self._returned, "returned"),
            **({"too_long": dict(self.too_long)} if self.too_long else {}),
        }

    def totals(self) -> State:
        """Those of the documents, and how many items were too long, if any was."""
        return {**self.documents.totals(), **({"too_long": dict(self.too_long)} if self.too_long else {})}
