"""Opens what a run reads: its logical streams where they stand, and the tail that follows their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lifecycle.batch import Cursor
from lifecycle.data.mixture.batch_plan import BatchPlan
from lifecycle.data.stream.loading.tail import is_outdated, open_tail, shared_out
from lifecycle.data.stream.pieces import Pieces, State
from lifecycle.data.stream.stream import Stream

Reading = Callable[[int, int, int], None]
"""Called with the source, the row and the line of each row that is read."""

OpenPieces = Callable[[Sequence[int], int, Mapping[int, State], Reading], dict[int, dict[str, Pieces]]]
"""(streams wanted, streams in all, states to go on from, reading) -> by stream and source, what it reads."""


@dataclass(frozen=True, kw_only=True)
class Opener:
    """`number` logical streams, which pack `window_rows` rows together in all.

    open_pieces: what each stream reads of every source (`Corpus.open_streams`); sources: their names, in order.
    end: the source whose end is that of the run. dropping: whether it goes on without other sources that are used up.
    """

    open_pieces: OpenPieces
    sources: Sequence[str]
    number: int
    seed: int
    window_rows: int
    dropping: bool
    end: str | None

    def streams(
        self,
        owned: Sequence[int],
        states: Mapping[int, State],
        plan: BatchPlan,
        reading: Reading,
    ) -> dict[int, Stream]:
        """The streams `owned` by one process, each from its state on."""
        pieces = self.open_pieces(owned, self.number, states, reading)
        return {
            index: Stream(
                index=index,
                streams=self.number,
                sources=pieces[index],
                plan=plan,
                seed=self.seed,
                window_rows=self.window_rows // self.number,
                dropping=self._droppable,
                state=states.get(index),
            )
            for index in owned
        }

    def tail(self, left: Mapping[int, State], state: State | None, plan: BatchPlan) -> Stream:
        """The tail: what is left in all streams, which are at the states `left`; state: of the tail, to resume it."""
        return self._tail(self._all(left, plan), left, state, plan)

    def going_on(self, cursor: Cursor | None, plan: BatchPlan, max_epochs: Mapping[str, float | None]) -> Cursor | None:
        """The cursor of a checkpoint; from a tail back to the streams, where there may be more to read now."""
        if cursor is None or cursor.tail is None:
            return cursor
        if not is_outdated(dict(cursor.tail), caps=max_epochs, dropping=self._droppable, end=self.end):
            return cursor
        left = {s: dict(state) for s, state in cursor.streams.items()}
        streams = self._all(left, plan)
        tail = self._tail(streams, left, dict(cursor.tail), plan)
        return Cursor(step=cursor.step, streams=shared_out(tail, streams, cursor.step))

    def _all(self, states: Mapping[int, State], plan: BatchPlan) -> list[Stream]:
        return list(self.streams(range(self.number), states, plan, _silent).values())

    def _tail(
        self, streams: Sequence[Stream], left: Mapping[int, State], state: State | None, plan: BatchPlan
    ) -> Stream:
        return open_tail(
            streams,
            left,
            plan=plan,
            window_rows=self.window_rows,
            dropping=self._droppable,
            end=self.end,
            state=state,
        )

    @property
    def _droppable(self) -> list[str]:
        return [name for name in self.sources if name != self.end] if self.dropping else []


def _silent(source: int, row: int, line: int) -> None:
    """Nothing to report in the main process, where a traceback shows the row."""
