"""One logical stream: sources -> token-exact mixture -> packed rows, endless, and resumable after every step.

    documents of each source -> pieces -> (the source furthest behind its share is next) -> a window of rows -> best fit

A stream packs one *window* at a time: the rows that it owes to a few steps. Its state is the state in which the window
began (positions in the sources, credits, left-over pieces), what it was packed for, and how many of its rows are given,
so resuming reads again what one window holds and never more, at step 10 as at step 10 million.

A change of the plan that was decided after the window was packed binds all the same at its step: the rows not yet given
are taken apart, and their pieces wait, first in line, in their sources.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.packing import Piece, Row, best_fit, cut
from lifecycle.data.plan import BatchPlan
from lifecycle.data.seeds import derive

State = dict[str, Any]


class Exhausted(Exception):
    """A source has been read as often as its `max_epochs` allows."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.source = source


class Documents(Protocol):
    """An endless, resumable sequence of tokenised documents of one source."""

    name: str

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
        self._returned: deque[NDArray[np.int32]] = deque(_split(state, "returned") if state else ())
        self._before = documents.state()
        self._ids: NDArray[np.int32] | None = None
        self._taken = 0
        if state and state["skip"]:
            self._ids = documents.next()
            self._taken = state["skip"]

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
        if self._ids is None:
            self._before = self.documents.state()
            self._ids = self.documents.next()
        start = self._taken
        ids = self._ids[start : start + row_length + 1]
        self._taken = start + len(ids) - 1
        if self._taken >= len(self._ids) - 1:
            self._ids, self._taken = None, 0
        return Piece(ids, self.index)

    def state(self) -> State:
        """Plain state and an array; a document that was begun is read again and its first `skip` positions passed
        over."""
        begun = self._ids is not None
        documents = self._before if begun else self.documents.state()
        return {"documents": documents, "skip": self._taken if begun else 0, **_joined(self._returned, "returned")}


class Packed(NamedTuple):
    """What a window was packed for: its rows, those of a step, their length, and the shares of the sources."""

    rows: int
    rows_a_step: int
    row_length: int
    weights: Mapping[str, float]


class Stream:
    """Rows of one logical stream, step by step.

    `sources` are the documents of each source in a fixed order; `state` is what `step` returned, or None at the start.
    `window_rows`: rows packed together; more pads less and reads more again on resume. `dropping`: go on without a
    source that is exhausted, instead of raising `Exhausted`.
    """

    def __init__(
        self,
        *,
        index: int,
        streams: int,
        sources: Mapping[str, Pieces],
        plan: BatchPlan,
        seed: int,
        window_rows: int,
        dropping: bool = False,
        state: State | None = None,
    ) -> None:
        self.index, self.streams, self.plan, self.seed = index, streams, plan, seed
        self.sources = dict(sources)
        self.names = list(sources)
        self.window_rows = window_rows
        self.dropping = dropping
        self.credit = dict.fromkeys(self.names, 0.0)
        self.carry: list[Piece] = []
        self.taken = dict.fromkeys(self.names, 0)  # positions drawn from a source: given out, or waiting in the window
        self.seen = dict.fromkeys(self.names, 0)
        self.padding = 0
        self.gone: list[str] = []
        self._ended: str | None = None
        self._window: list[Row] = []
        self._anchor: State = {}
        self._given = 0
        if state is not None:
            self._restore(state)

    def step(self, step: int) -> tuple[list[Row], State]:
        """The rows that this stream owes to step `step`, and the state after it. Steps must come in order."""
        count = self.plan.at(step).rows // self.streams
        change = self.plan.next_change(self._anchor["step"]) if self._anchor else None
        if change is not None and change <= step and self._given < len(self._window):
            self._take_back()
        if self._given == len(self._window):
            self._fill(step, count)
        rows = self._window[self._given : self._given + count]
        self._given += count
        for row in rows:
            self.padding += row.free
            for piece in row.pieces:
                self.seen[self.names[piece.source]] += piece.positions
        return rows, self.state()

    def state(self) -> State:
        """Plain containers and arrays (`*_ids`): the window's beginning, and what was given since."""
        return {
            "anchor": self._anchor,
            "given": self._given,
            "seen": dict(self.seen),
            "padding": self.padding,
            "totals": {name: self._totals(name) for name in self.names},
        }

    def _totals(self, name: str) -> State:
        """The source's own totals; of its passes, the share that was given out and does not wait in the window."""
        totals = self.sources[name].documents.totals()
        return {**totals, "epochs": totals["epochs"] * self.seen[name] / max(self.taken[name], 1)}

    def _restore(self, state: State) -> None:
        anchor = state["anchor"]
        self.credit = dict(anchor["credit"])
        self.gone = list(anchor["gone"])
        self.taken = dict(anchor["taken"])
        parts = _split(anchor, "carry")
        self.carry = [Piece(part, s, True) for part, s in zip(parts, anchor["carry_sources"], strict=True)]
        self._pack(anchor["step"], Packed(**anchor["packed"]))
        self._given = state["given"]
        self.seen = dict(state["seen"])
        self.padding = state["padding"]

    def _mark(self, step: int, packed: Packed) -> State:
        return {
            "step": step,
            "packed": {**packed._asdict(), "weights": dict(packed.weights)},
            "sources": {name: pieces.state() for name, pieces in self.sources.items()},
            "credit": dict(self.credit),
            "gone": list(self.gone),
            "taken": dict(self.taken),
            **_joined([p.ids for p in self.carry], "carry"),
            "carry_sources": [p.source for p in self.carry],
        }

    def _fill(self, step: int, rows_a_step: int) -> None:
        """Pack the next window: as many steps as give about `window_rows` rows, but none across a change of plan."""
        steps = self.plan.window(step, max(1, self.window_rows // rows_a_step))
        weights = self.plan.weights(step + steps // 2)
        self._pack(step, Packed(steps * rows_a_step, rows_a_step, self.plan.at(step).row_length, weights))

    def _pack(self, step: int, packed: Packed) -> None:
        self._anchor = self._mark(step, packed)
        wanted, row_length = packed.rows, packed.row_length
        pieces = [part for piece in self.carry for part in cut(piece, row_length)]
        self._gather(pieces, wanted * row_length, packed)
        rows = best_fit(pieces, row_length)
        if len(rows) < wanted:  # exhausted: the whole steps that are left, then the error
            wanted = len(rows) // packed.rows_a_step * packed.rows_a_step
        if wanted == 0:
            raise Exhausted(self._ended or "")
        # What was left over goes first, so no piece waits longer than a window; then the fullest rows, to pad least.
        order = sorted(range(len(rows)), key=lambda i: (not rows[i].carried, rows[i].free))
        rng = np.random.Generator(np.random.Philox(derive(self.seed, "rows", self.index, step)))
        self._window = [rows[order[i]] for i in rng.permutation(wanted)]
        self.carry = [p._replace(carried=True) for i in order[wanted:] for p in rows[i].pieces]
        self._given = 0

    def _take_back(self) -> None:
        """Undo the packing of the rows that were not given: a change binds that was not known when it was done."""
        pieces = [piece for row in self._window[self._given :] for piece in row.pieces]
        self.carry = [*(piece for piece in pieces if piece.carried), *self.carry]
        weights = self._anchor["packed"]["weights"]
        for piece in pieces:
            if not piece.carried:
                name = self.names[piece.source]
                self.sources[name].take_back(piece.ids)
                self._count(name, -piece.positions, weights)
        self._window, self._given, self._ended = [], 0, None

    def _gather(self, pieces: list[Piece], positions: int, packed: Packed) -> None:
        """Add pieces until they take `positions`, or until a source is exhausted."""
        missing = positions - sum(piece.positions for piece in pieces)
        while missing > 0 and self._ended is None:
            try:
                piece = self._next_piece(packed.weights, packed.row_length)
            except Exhausted as end:
                self._ended = end.source
                return
            pieces.append(piece)
            missing -= piece.positions

    def _next_piece(self, weights: Mapping[str, float], row_length: int) -> Piece:
        """A piece of the source furthest behind its share of the tokens given out so far."""
        while True:
            alive = self._alive(weights)
            if not alive:
                raise Exhausted(", ".join(self.names))
            name = max(alive, key=lambda n: (self.credit[n], weights[n]))
            try:
                piece = self.sources[name].next(row_length)
                break
            except Exhausted:
                if not self.dropping:
                    raise
                self.gone.append(name)
        self._count(name, piece.positions, weights)
        return piece

    def _alive(self, weights: Mapping[str, float]) -> list[str]:
        return [name for name in self.names if name not in self.gone and weights.get(name, 0.0) > 0]

    def _count(self, name: str, positions: int, weights: Mapping[str, float]) -> None:
        """`positions` were drawn from source `name`, of what was due to all by `weights`."""
        alive = self._alive(weights)
        total = sum(weights[n] for n in alive)
        for other in alive:
            self.credit[other] += positions * weights[other] / total
        self.credit[name] -= positions
        self.taken[name] += positions


def _joined(parts: Iterable[NDArray[np.int32]], name: str) -> State:
    """Arrays as one, and their lengths: what a checkpoint holds of them."""
    listed = list(parts)
    return {
        f"{name}_ids": np.concatenate(listed or [np.zeros(0, np.int32)]),
        f"{name}_lengths": [len(part) for part in listed],
    }


def _split(state: State, name: str) -> list[NDArray[np.int32]]:
    """The other way of `_joined`."""
    lengths = state[f"{name}_lengths"]
    return np.split(np.asarray(state[f"{name}_ids"]), np.cumsum(lengths)[:-1]) if lengths else []
