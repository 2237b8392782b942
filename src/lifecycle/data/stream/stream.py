"""One logical stream: sources -> token-exact mixture -> packed rows, endless, and resumable after every step.

    items of each source -> pieces -> (the source furthest behind its share is next) -> a window of rows -> best fit

A stream packs one *window* at a time: the rows that it owes to a few steps. Its state is the state in which the window
began (positions in the sources, credits, left-over pieces), what it was packed for, and how many of its rows are given,
so resuming reads again what one window holds and never more, at step 10 as at step 10 million.

A change of the plan that was decided after the window was packed binds all the same at its step: the rows not yet given
are taken apart, and their pieces wait, first in line, in their sources.

A window is packed whole or not at all, so what is given does not depend on how often a source may still be read. Where
it cannot be whole, the stream ends; what is left in all streams is shared out by `tail.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lifecycle.batch.item_arrays import joined, split
from lifecycle.data.mixture.batch_plan import BatchPlan
from lifecycle.data.stream.packing import Packing, Piece, Row, best_fit
from lifecycle.data.stream.pieces import Exhausted, Pieces, State
from lifecycle.system.seeds import derive


class Packed(NamedTuple):
    """What a window was packed for: its rows, those of a step, their length, and the shares of the sources; and by
    which `dropping` and `end`, which may be others in the run that goes on."""

    rows: int
    rows_a_step: int
    row_length: int
    weights: Mapping[str, float]
    dropping: Sequence[str]
    end: str | None


class Stream:
    """Rows of one logical stream, step by step.

    `sources` are the documents of each source in a fixed order; `state` is what `step` returned, or None at the start.
    `window_rows`: rows packed together; more pads less and reads more again on resume. `dropping`: sources that it goes
    on without once they are exhausted; any other ends it. `last`: nothing comes after this stream: what is left is
    given out in whole steps, and where nothing else is to be read, or source `end` is used up, to the last piece, in
    a step that is filled up with padding.
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
        dropping: Collection[str] = (),
        last: bool = False,
        end: str | None = None,
        state: State | None = None,
    ) -> None:
        self.index, self.streams, self.plan, self.seed = index, streams, plan, seed
        self.sources = dict(sources)
        self.names = list(sources)
        self.packing: Packing = next(iter(sources.values())).packing  # of the view of the run
        self.window_rows = window_rows
        self.dropping, self.last, self.end = dropping, last, end
        self.credit = dict.fromkeys(self.names, 0.0)
        self.phase: dict[str, float] = {}
        self.carry: list[Piece] = []
        self.taken = dict.fromkeys(self.names, 0)  # positions drawn from a source: given out, or waiting in the window
        self.seen = dict.fromkeys(self.names, 0)
        self.padding = 0
        self.gone: list[str] = []
        self._window: list[Row] = []
        self._anchor: State = {}
        self._given = 0
        if state is not None:
            self._restore(state)

    def step(self, step: int) -> tuple[list[Row], State]:
        """The rows that this stream owes to step `step`, and the state after it. Steps must come in order."""
        count = self.plan.at(step).rows // self.streams
        if self._given < len(self._window) and self._has_another_plan(step):
            self.take_back()
        if self._given == len(self._window):
            self._fill(step, count)
        rows = self._window[self._given : self._given + count]
        self._given += count
        for row in rows:
            self.padding += row.free
            for piece in row.pieces:
                self.seen[self.names[piece.source]] += piece.positions
        return rows, self.state()

    def _has_another_plan(self, step: int) -> bool:
        """Whether a change binds at `step`, or bound before it, that the window was not packed for: one that was
        decided since, or the beginnings of phases that moved with the end of the run."""
        phase, packed = self.plan.at(step), self._anchor["packed"]
        change = self.plan.next_change(self._anchor["step"])
        known = (packed["rows_a_step"], packed["row_length"]) == (phase.rows // self.streams, phase.row_length)
        return not known or (change is not None and change <= step)

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
        """The source's own totals; of its passes, the share that was given out and does not wait in the window. All of
        them, where there was nothing in them for this stream."""
        totals, taken = self.sources[name].totals(), self.taken[name]
        return {**totals, "epochs": totals["epochs"] * self.seen[name] / taken if taken else totals["epochs"]}

    def _restore(self, state: State) -> None:
        anchor = state["anchor"]
        self.credit, self.phase = dict(anchor["credit"]), dict(anchor["phase"])
        self.gone = list(anchor["gone"])
        self.taken = dict(anchor["taken"])
        parts = split(anchor, "carry")
        self.carry = [Piece(part, s, True) for part, s in zip(parts, anchor["carry_sources"], strict=True)]
        if anchor["packed"] is not None:
            self._pack(anchor["step"], Packed(**anchor["packed"]))
        self._given = state["given"]
        self.seen = dict(state["seen"])
        self.padding = state["padding"]
        changed = [name for name, pieces in self.sources.items() if pieces.bind()]
        # it may have come back, or be missed now
        self.gone = [name for name in self.gone if name not in changed and name in self.dropping]

    def unpacked(self, step: int) -> State:
        """The state at `step` of a stream of which no row waits in a window."""
        return {**self.state(), "anchor": self._mark(step, None), "given": 0}

    def _mark(self, step: int, packed: Packed | None) -> State:
        return {
            "step": step,
            "packed": packed and {**packed._asdict(), "weights": dict(packed.weights), "dropping": [*packed.dropping]},
            "sources": {name: pieces.state() for name, pieces in self.sources.items()},
            "credit": dict(self.credit),
            "phase": dict(self.phase),
            "gone": list(self.gone),
            "taken": dict(self.taken),
            **joined([p.item for p in self.carry], "carry"),
            "carry_sources": [p.source for p in self.carry],
        }

    def _fill(self, step: int, rows_a_step: int) -> None:
        """Pack the next window: as many steps as give about `window_rows` rows, but none across a change of plan."""
        steps = self.plan.window(step, max(1, self.window_rows // rows_a_step))
        packed = Packed(
            rows=steps * rows_a_step,
            rows_a_step=rows_a_step,
            row_length=self.plan.at(step).row_length,
            weights=self.plan.weights(step + steps // 2),
            dropping=sorted(self.dropping),
            end=self.end,
        )
        self._pack(step, packed)

    def _pack(self, step: int, packed: Packed) -> None:
        self._anchor = self._mark(step, packed)
        wanted, row_length = packed.rows, packed.row_length
        room = self.packing.room(row_length)
        pieces = [part for piece in self.carry for part in self._laid(piece, packed)]
        used_up = self._gather(pieces, wanted * room, packed)
        rows = best_fit(pieces, room)
        if used_up is not None:
            wanted = self._rows_left(len(rows), used_up, packed)
        # What was left over goes first, so no piece waits longer than a window; then the fullest rows, to pad least.
        order = sorted(range(len(rows)), key=lambda i: (not rows[i].carried, rows[i].free))
        given = order[:wanted]
        if not self.packing.counts:  # prompts stay as drawn: a window may hold several passes over few of them
            rng = np.random.Generator(np.random.Philox(derive(self.seed, "rows", self.index, step)))
            given = [order[i] for i in rng.permutation(len(given))]
        self._window = [rows[i] for i in given]
        self._window += [Row([], room) for _ in range(wanted - len(rows))]
        self.carry = [p._replace(carried=True) for i in order[wanted:] for p in rows[i].pieces]
        self._given = 0

    def _laid(self, piece: Piece, packed: Packed) -> list[Piece]:
        """A piece that was left over as it stands in rows that may be shorter now: not all of it need be given out."""
        parts, name = self.packing.laid(piece, packed.row_length), self.names[piece.source]
        if not self.packing.goes_on(piece.item) and (not parts or parts[0] is not piece):
            self.sources[name].too_long["shortened" if parts else "dropped"] += 1
            self._count(name, sum(part.positions for part in parts) - piece.positions, packed.weights)
        return parts

    def _rows_left(self, rows: int, used_up: str, packed: Packed) -> int:
        """Rows of the window that follows the last piece of a source; raises `Exhausted` where there are none."""
        is_end = used_up == packed.end or set(self._alive(packed.weights)) <= {used_up}
        steps = math.ceil(rows / packed.rows_a_step) if is_end else rows // packed.rows_a_step
        if not self.last or not steps:
            raise Exhausted(used_up, is_end=is_end)
        return min(packed.rows, steps * packed.rows_a_step)

    def take_back(self) -> None:
        """Undo the packing of the rows that were not given: a change binds that was not known when it was done."""
        if self._given == len(self._window):
            return
        pieces = [piece for row in self._window[self._given :] for piece in row.pieces]
        self.carry = [*(piece for piece in pieces if piece.carried), *self.carry]
        weights = self._anchor["packed"]["weights"]
        for piece in pieces:
            if not piece.carried:
                name = self.names[piece.source]
                self.sources[name].take_back(piece.item)
                self._count(name, -piece.positions, weights)
        self._window, self._given = [], 0

    def set_aside(self) -> list[Piece]:
        """The pieces that were drawn and wait for no row: they are no longer this stream's."""
        drawn, self.carry = self.carry, []
        for piece in drawn:
            self.taken[self.names[piece.source]] -= piece.positions
        return drawn

    def take_over(self, drawn: list[Piece]) -> None:
        """Pieces that another stream has drawn."""
        self.carry += drawn
        for piece in drawn:
            self.taken[self.names[piece.source]] += piece.positions

    def _gather(self, pieces: list[Piece], positions: int, packed: Packed) -> str | None:
        """Add pieces until they take `positions`; the source that is used up before they do, or None."""
        missing = positions - sum(piece.positions for piece in pieces)
        while missing > 0:
            try:
                piece = self._next_piece(packed)
            except Exhausted as end:
                return end.source
            pieces.append(piece)
            missing -= piece.positions
        return None

    def _next_piece(self, packed: Packed) -> Piece:
        """A piece of the source that is due one by its share of the tokens given out so far."""
        weights, row_length = packed.weights, packed.row_length
        while True:
            alive = self._alive(weights)
            if not alive:
                raise Exhausted(", ".join(self.names))
            name = self._due(alive, weights, row_length)
            try:
                piece = self.sources[name].next(row_length)
                break
            except Exhausted:
                if name not in packed.dropping:
                    raise
                self.gone.append(name)
        self._count(name, piece.positions, weights)
        return piece

    def _due(self, alive: Sequence[str], weights: Mapping[str, float], row_length: int) -> str:
        """The source furthest behind of those that are due a piece; the one of largest weight where none is."""
        main, total = max(alive, key=lambda name: weights[name]), sum(weights[name] for name in alive)
        for name in alive:
            if name not in self.phase:
                self.phase[name] = self._drawn_phase(name, weights[name] / total, row_length)
        due = {name: self.credit[name] + self.phase[name] for name in alive if name != main} | {main: 0.0}
        return max(due, key=lambda name: (due[name], weights[name]))

    def _drawn_phase(self, name: str, share: float, row_length: int) -> float:
        """Where in the course of a source's credit, which grows to a piece and falls by it, the stream begins.

        Streams are spread evenly over it. If all began alike, all would take their first piece of a source at once,
        which of a source of small weight is many times its share of the tokens.
        """
        rng = np.random.Generator(np.random.Philox(derive(self.seed, "phase", name)))
        turn = (rng.permutation(self.streams)[self.index % self.streams] + 0.5) / self.streams
        return float(self.sources[name].peek(row_length) * (share - turn))

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
