"""Documents of a source as pieces of at most a row, resumable in the middle of a document.

A source may be read so many times at most (`max_epochs`). That is a setting of the run that goes on, not of what was
read: a state says under which it was taken, so what was packed is packed again as it was, whatever the run says now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.stream.packing import Piece

WHOLE = 1 << 62  # a row length that no document reaches

State = dict[str, Any]


class Exhausted(Exception):
    """A source has been read as often as its `max_epochs` allows; `is_end`: and with it, all that there is to read."""

    def __init__(self, source: str, *, is_end: bool = False) -> None:
        super().__init__(source)
        self.source, self.is_end = source, is_end


class Documents(Protocol):
    """A resumable sequence of tokenised documents of one source, endless where `max_epochs` is None."""

    name: str
    max_epochs: float | None

    def next(self) -> NDArray[np.int32]:
        """The ids of the next document, with its begin and end marks (at least two); raises `Exhausted`."""

    def state(self) -> State:
        """Plain state from which the sequence goes on after the documents already returned."""

    def totals(self) -> State:
        """What was read so far: rows, epochs, dropped and bad rows by reason."""


class Pieces:
    """Documents of one source as pieces of at most a row; remembers where in a document it stands."""

    def __init__(self, documents: Documents, index: int, state: State | None = None) -> None:
        self.documents = documents
        self.index = index
        self._max_epochs = documents.max_epochs
        if state:
            documents.max_epochs = state["max_epochs"]
        self._returned: deque[NDArray[np.int32]] = deque(split(state, "returned") if state else ())
        self._before = documents.state()
        self._ids: NDArray[np.int32] | None = None
        self._taken = 0
        if state and state["skip"]:
            self._ids = documents.next()
            self._taken = state["skip"]

    def bind(self) -> bool:
        """From here on the run's own `max_epochs` holds, and not that of the state; whether it is another."""
        changed = self.documents.max_epochs != self._max_epochs
        self.documents.max_epochs = self._max_epochs
        return changed

    def drain(self) -> list[NDArray[np.int32]]:
        """What was drawn from the documents and not given out: it comes no more."""
        begun = [self._ids[self._taken :]] if self._ids is not None else []
        left = [*self._returned, *begun]
        self._returned.clear()
        self._ids, self._taken = None, 0
        return left

    def peek(self, row_length: int) -> int:
        """Positions of the next piece; 0 where there is none."""
        try:
            ids = self._returned[0] if self._returned else self._open()
        except Exhausted:
            return 0
        return min(len(ids) - 1, row_length)

    def take_back(self, ids: NDArray[np.int32]) -> None:
        """A piece that was not given out after all: it comes again before anything new."""
        self._returned.append(ids)

    def next(self, row_length: int) -> Piece:
        """The next piece; a document longer than the row comes as several."""
        if self._returned:
            ids = self._returned.popleft()
            if len(ids) > row_length + 1:
                self._returned.appendleft(ids[row_length:])
            return Piece(ids[: row_length + 1], self.index)
        rest = self._open()
        ids = rest[: row_length + 1]
        self._taken += len(ids) - 1
        if len(ids) == len(rest):
            self._ids, self._taken = None, 0
        return Piece(ids, self.index)

    def _open(self) -> NDArray[np.int32]:
        """What is left of the document that was begun; of the next one, if none was."""
        if self._ids is None:
            self._before = self.documents.state()
            self._ids = self.documents.next()
        return self._ids[self._taken :]

    def state(self) -> State:
        """Plain state and an array; a document that was begun is read again and its first `skip` positions passed
        over."""
        begun = self._ids is not None
        documents = self._before if begun else self.documents.state()
        return {
            "documents": documents,
            "skip": self._taken if begun else 0,
            "max_epochs": self.documents.max_epochs,
            **joined(self._returned, "returned"),
        }


def joined(parts: Iterable[NDArray[np.int32]], name: str) -> State:
    """Arrays as one, and their lengths: what a checkpoint holds of them."""
    listed = list(parts)
    return {
        f"{name}_ids": np.concatenate(listed or [np.zeros(0, np.int32)]),
        f"{name}_lengths": [len(part) for part in listed],
    }


def split(state: State, name: str) -> list[NDArray[np.int32]]:
    """The other way of `joined`."""
    lengths = state[f"{name}_lengths"]
    return np.split(np.asarray(state[f"{name}_ids"]), np.cumsum(lengths)[:-1]) if lengths else []
