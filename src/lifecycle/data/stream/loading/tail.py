"""The end of the data: what is left in all streams, as one stream that every rank makes alike.

    streams, where they stand  ->  what each has drawn, then what each may still read  ->  one stream, to the last piece

Streams have equal shares of the rows but not of the tokens, so one of them reaches the end of a source first. From that
step on all ranks read this one stream. A resumed run whose sources may now be read more often goes back to its streams:
what was left is divided among them, and no row is lost or read twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lifecycle.batch import Item
from lifecycle.data.mixture.batch_plan import BatchPlan
from lifecycle.data.stream.packing import WHOLE
from lifecycle.data.stream.pieces import Exhausted, Pieces, State
from lifecycle.data.stream.stream import Stream


class Rest:
    """Items of one source that its `streams` have not given out, one of each in turn.

    begun: the totals of the streams when the tail began. Of a text that was given out in part, the rest comes.
    """

    def __init__(self, name: str, streams: Sequence[Pieces], begun: Sequence[State], state: State | None) -> None:
        self.name, self._streams = name, streams
        self._epochs = sum(totals["epochs"] for totals in begun)
        self._counts = Counter[str]()
        for totals in begun:
            self._counts.update(totals["counts"])
        self._given = [0] * len(streams)
        self._at = 0
        if state is not None:
            self._pass_over(state)

    def _pass_over(self, state: State) -> None:
        """Skip the items that were given out before the state was taken."""
        now, self.max_epochs = self.max_epochs, state["max_epochs"]
        for stream, given in enumerate(state["given"]):
            for _ in range(given):
                self._streams[stream].next(WHOLE)
        self.max_epochs, self._given, self._at = now, list(state["given"]), state["turn"]

    @property
    def max_epochs(self) -> float | None:
        """Passes at most, of every stream."""
        return self._streams[0].documents.max_epochs

    @max_epochs.setter
    def max_epochs(self, value: float | None) -> None:
        for pieces in self._streams:
            pieces.documents.max_epochs = value

    def next(self) -> Item:
        """The next item; raises `Exhausted` after the last one of all streams."""
        for _ in self._streams:
            stream, self._at = self._at, (self._at + 1) % len(self._streams)
            try:
                item = self._streams[stream].next(WHOLE).item
            except Exhausted:
                continue
            self._given[stream] += 1
            return item
        raise Exhausted(self.name)

    def state(self) -> State:
        """The number of pieces given out by each stream, and the stream that is next."""
        return {"given": list(self._given), "turn": self._at, "max_epochs": self.max_epochs}

    def totals(self) -> State:
        """What was read since the streams ended, by all of them."""
        counts, epochs = Counter[str](), 0.0
        for pieces in self._streams:
            totals = pieces.documents.totals()
            counts.update(totals["counts"])
            epochs += totals["epochs"]
        counts.subtract(self._counts)
        return {"epochs": epochs - self._epochs, "counts": {k: n for k, n in counts.items() if n}}


def open_tail(
    streams: Sequence[Stream],
    states: Mapping[int, State],
    *,
    plan: BatchPlan,
    window_rows: int,
    dropping: Collection[str],
    end: str | None,
    state: State | None,
) -> Stream:
    """One stream over what is left in `streams`, which are at `states` (empty: at their beginning); state: of the tail,
    to resume it."""
    first = streams[0]
    for stream in streams:
        stream.take_back()
    sources = {}
    for index, name in enumerate(first.names):
        begun = [one["totals"][name] for one in states.values()]
        at = state["anchor"]["sources"][name] if state else None
        rest = Rest(name, [stream.sources[name] for stream in streams], begun, at and at["documents"])
        sources[name] = Pieces(rest, index, at, packing=first.packing)
    drawn = [stream.set_aside() for stream in streams]
    tail = Stream(
        index=len(streams),
        streams=1,
        sources=sources,
        plan=plan,
        seed=first.seed,
        window_rows=window_rows,
        dropping=dropping,
        last=True,
        end=end,
        state=state,
    )
    if state is None:
        for carry in drawn:
            tail.take_over(carry)
    return tail


def shared_out(tail: Stream, streams: Sequence[Stream], step: int) -> dict[int, State]:
    """States of `streams`, which `tail` was opened on, that go on at `step` with what the tail has not given out."""
    tail.take_back()
    first = streams[0]
    for name in tail.names:
        first.seen[name] += tail.seen[name]
        first.taken[name] += tail.seen[name]
        first.credit[name] += tail.credit[name]
        first.sources[name].too_long.update(tail.sources[name].too_long)
        for number, item in enumerate(tail.sources[name].drain()):
            streams[number % len(streams)].sources[name].take_back(item)
    first.padding += tail.padding
    for number, piece in enumerate(tail.carry):
        streams[number % len(streams)].take_over([piece])
    return {stream.index: stream.unpacked(step) for stream in streams}


def is_outdated(state: State, *, caps: Mapping[str, Any], dropping: Collection[str], end: str | None) -> bool:
    """Whether sources may now be read another number of times, or other sources end the run, than when this state of a
    tail was taken."""
    packed = state["anchor"]["packed"]
    if (packed["dropping"], packed["end"]) != (sorted(dropping), end):
        return True
    return any(state["anchor"]["sources"][name]["max_epochs"] != cap for name, cap in caps.items())
