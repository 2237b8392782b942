"""From logical streams to the batches of one rank: workers share the streams out, the main process joins their rows.

A worker yields, step after step, the packed rows of its streams; joined in the order of the streams they are the same
rows whatever the number of workers, and over all ranks the same step whatever the number of ranks. Where the plan is
changed while batches are read ahead, the workers begin again at the step from which the change binds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import accumulate, count, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lifecycle.batch import Cursor, MicroBatch, PromptBatch, StepBatch
from lifecycle.data.mixture.batch_plan import BatchPlan
from lifecycle.data.stream.loading.ends import Ending
from lifecycle.data.stream.loading.exchange import gather, highest
from lifecycle.data.stream.loading.workers import Part, WorkerDied, Workers
from lifecycle.data.stream.packing import Packing, Row
from lifecycle.data.stream.pieces import Exhausted, State
from lifecycle.data.stream.stream import Stream
from lifecycle.errors import UserError

Reading = Callable[[int, int, int], None]  # called with the source, row and line of each row that is read
OpenTail = Callable[[Mapping[int, State], State | None, BatchPlan], Stream]
GIVEN, USED_UP, FAILED = range(3)  # outcome of a step; the largest over the ranks is the outcome on all of them
OpenStreams = Callable[[Sequence[int], Mapping[int, State], BatchPlan, Reading], dict[int, Stream]]
AHEAD_TOKENS, AHEAD_STEPS = 2**19, (2, 16)  # a worker's slots: enough to hide a window being packed, within bounds


class Beside(NamedTuple):
    """What goes with the packed rows of a step: what it changed in the state of each stream, or the state of the tail;
    and in the view `prompt`, where nothing is packed, the prompts: (rows,) objects."""

    state: Any
    prompts: NDArray[np.object_] | None


class StepLoader:
    """One rank's batches, a `StepBatch` a step, from the step after `cursor` to `stop` (exclusive; None: to the end of
    the data).

    `streams` are this rank's of `all_streams` logical streams; `packing` is that of the view; `micro_rows(row_length,
    rows)` says how so many rows are cut into micro-batches. Where some source comes to an end (`ends`), the ranks tell
    each other at every step whether they have a batch, and change to the tail together. may_end: the data may end
    without an error when there is nothing left to read.

    An error after the first batch ends the iteration, and is stored in `ending`: the last batches given out are not
    trained on yet at that time, and the trained steps are saved before the error is raised.
    """

    def __init__(
        self,
        *,
        open_streams: OpenStreams,
        open_tail: OpenTail,
        streams: Sequence[int],
        all_streams: int,
        source_names: Sequence[str],
        plan: BatchPlan,
        cursor: Cursor | None,
        stop: int | None,
        ends: bool,
        may_end: bool,
        workers: int,
        micro_rows: Callable[[int, int], list[int]],
        packing: Packing,
        pin_memory: bool = False,
    ) -> None:
        self._packing = packing
        self._open_streams, self._open_tail, self._names = open_streams, open_tail, list(source_names)
        self._plan, self._micro_rows = plan, micro_rows
        self._streams, self._all, self._workers = list(streams), all_streams, min(workers, len(streams))
        self._start, self._stop, self._ends, self._may_end = cursor.step if cursor else 0, stop, ends, may_end
        self._states = {s: dict(cursor.streams[s]) for s in streams if s in cursor.streams} if cursor else {}
        left = {s: dict(state) for s, state in cursor.streams.items()} if cursor and cursor.tail else None
        self._left: dict[int, State] | None = left  # where the streams stood when the tail began
        self._tail = dict(cursor.tail) if cursor and cursor.tail else None
        self._binds: int | None = None
        self._pin = pin_memory
        self._fault: Exception | None = None
        self.ending: Ending | None = None

    def change(self, plan: BatchPlan, step: int) -> None:
        """Follow `plan` from `step` on; no batch of that step or a later one may have been given out yet."""
        self._plan, self._binds = plan, step

    def __iter__(self) -> Iterator[StepBatch]:
        turns = max(1, self._workers)
        owners = [self._streams[w::turns] for w in range(turns)]
        step = self._start
        while self.ending is None and not self._is_over(step):
            if self._left is not None:
                read = self._read_tail(step)
            else:
                read = self._read_ahead(owners, step) if self._workers else self._read(owners[0], step)
            with closing(read) as together:
                step = yield from self._batches(together, owners, step)

    def _is_over(self, step: int) -> bool:
        return self._stop is not None and step >= self._stop

    def _batches(
        self, together: Iterator[list[Part]], owners: list[list[int]], step: int
    ) -> Generator[StepBatch, None, int]:
        """Batches until the plan changes or a rank has none; the step that comes next."""
        while not self._is_over(step):
            parts, outcome = self._next(together)
            outcome = highest(outcome) if self._ends else outcome
            if parts is None or outcome != GIVEN:
                self._turn(outcome, step)
                break
            yield self._join(step, parts, owners)
            step += 1
            if step == self._binds:
                break
        return step

    def _next(self, together: Iterator[list[Part]]) -> tuple[list[Part] | None, int]:
        """The parts of the next step, and its outcome."""
        try:
            parts = next(together, None)
        except Exception as fault:  # of any kind: the trained steps are saved before it is raised
            self._fault = fault
            return None, FAILED
        return parts, USED_UP if parts is None else GIVEN

    def _turn(self, outcome: int, step: int) -> None:
        """Note that from `step` on no rank has a batch of the streams, or of the tail."""
        if outcome == USED_UP and self._left is None:
            self._left = gather(self._states)
            return
        if outcome == FAILED and self._fault is None:
            self._fault = RuntimeError("another rank could not read its data: its error says why")
        if self._fault is not None and step == self._start:
            raise self._fault
        self.ending = Ending(step, self._fault)

    def _read_tail(self, start: int) -> Generator[list[Part]]:
        assert self._left is not None
        tail = self._open_tail(self._left, self._tail, self._plan)
        for step in count(start):
            try:
                rows, state = tail.step(step)
            except Exhausted as end:
                if not (end.is_end and self._may_end):
                    self._fault = UserError(_used_up(end.source, trained=step > 0))
                return
            yield [self._part(step, rows, state)]

    def _read(self, owned: Sequence[int], start: int) -> Generator[list[Part]]:
        for part in self._parts(owned, start, _silent):
            yield [part]

    def _parts(self, owned: Sequence[int], start: int, reading: Reading) -> Iterator[Part]:
        """For every step the rows (columns, B, T) of the streams `owned`, and what is new in each stream's state after
        the step; until the first of these streams ends."""
        known = {s: self._states[s] for s in owned if s in self._states}
        streams = self._open_streams(owned, known, self._plan, reading)
        sent = dict[int, Any]()  # each stream's last anchor
        for step in count(start):
            if self._is_over(step):
                return
            try:
                given = {s: stream.step(step) for s, stream in streams.items()}
            except Exhausted:
                return
            rows = [row for rows, _ in given.values() for row in rows]
            yield self._part(step, rows, {s: _news(s, state, sent) for s, (_, state) in given.items()})

    def _part(self, step: int, rows: Sequence[Row], state: Any) -> Part:
        """Rows of one step, as workers send them: packed, or their prompts beside them."""
        prompts = _prompts(rows) if self._packing.counts else None
        return self._packing.arrays(rows, self._plan.at(step).row_length), Beside(state, prompts)

    def _read_ahead(self, owners: list[list[int]], start: int) -> Generator[list[Part]]:
        positions = max(phase.rows * phase.row_length for phase in self._plan.phases)
        each = math.ceil(positions * len(owners[0]) / len(self._streams))
        slots = min(max(AHEAD_TOKENS // each, AHEAD_STEPS[0]), AHEAD_STEPS[1])
        produce = [partial(self._parts, owned, start) for owned in owners]
        workers = Workers(produce, slots=slots, slot_values=each * len(self._packing.columns))
        try:
            yield from workers.parts()
        except WorkerDied as error:
            raise RuntimeError(f"{error} {self._last_read(workers)}") from error

    def _last_read(self, workers: Workers) -> str:
        at = [
            f"worker {w}: source '{self._names[source]}', row {row}, line {line}"
            for w, (source, row, line) in enumerate(worker.last_read for worker in workers.all)
            if source >= 0
        ]
        return "It was last reading: " + ("; ".join(at) or "nothing yet")

    def _join(self, step: int, parts: list[Part], owners: list[list[int]]) -> StepBatch[Any]:
        """The rows of all workers in the order of the streams, cut into micro-batches."""
        arrays, beside = [rows for rows, _ in parts], [one for _, one in parts]
        prompts = [one.prompts for one in beside if one.prompts is not None]
        if self._left is None:
            news = {s: state for one in beside for s, state in one.state.items()}
            self._states = {s: {**self._states.get(s, {}), **state} for s, state in news.items()}
            rows = _in_order(arrays, owners)
            prompts = [_in_order([part[None, :, None] for part in prompts], owners)[0, :, 0]] if prompts else []
            states: Mapping[int, State] = {s: self._states[s] for s in self._streams}
        else:
            [every], [(self._tail, _)] = arrays, beside
            each = every.shape[1] // self._all
            mine = slice(self._streams[0] * each, (self._streams[-1] + 1) * each)
            rows, prompts = every[:, mine].astype(np.int64), [part[mine] for part in prompts]
            states = {s: self._left[s] for s in self._streams if s in self._left}
        micro = self._micro_batches(step, rows, prompts[0] if prompts else None)
        return StepBatch(step=step, micro=micro, cursor=Cursor(step=step + 1, streams=states, tail=self._tail))

    def _micro_batches(
        self, step: int, rows: NDArray[np.int64], prompts: NDArray[np.object_] | None
    ) -> list[MicroBatch]:
        """This rank's rows of a step, cut: on every rank into as many parts."""
        count = rows.shape[1]
        ends = list(accumulate(self._micro_rows(self._plan.at(step).row_length, count)))
        bounds = list(pairwise([0, *ends]))
        if prompts is not None:
            first = self._streams[0] * (count // len(self._streams))
            return [PromptBatch.of(prompts[start:end], step=step, first=first + start) for start, end in bounds]
        tensors = torch.from_numpy(rows)
        whole = self._packing.batch(tensors.pin_memory() if self._pin else tensors)
        return [whole.rows(start, end) for start, end in bounds]


def _news(stream: int, state: State, sent: dict[int, Any]) -> State:
    """A stream's state, without the beginning of its window where that was sent with an earlier step: it holds all that
    was left over, and to pickle it takes longer than to pack a row."""
    anchor = state["anchor"]
    if sent.get(stream) is anchor:
        return {key: value for key, value in state.items() if key != "anchor"}
    sent[stream] = anchor
    return state


def _prompts(rows: Sequence[Row]) -> NDArray[np.object_]:
    """(rows,): the prompt of each and its source's index; None for a row that fills up the last step."""
    out = np.empty(len(rows), object)
    for index, row in enumerate(rows):
        out[index] = (row.pieces[0].item, row.pieces[0].source) if row.pieces else None
    return out


def _in_order(parts: list[NDArray[Any]], owners: list[list[int]]) -> NDArray[Any]:
    """(columns, B, T) of several workers as one, ordered by stream; every stream gives the same number of rows.

    int64 for integers, else as they are. In numpy: torch would share such small work out among threads that compete
    with the workers for the cores.
    """
    kind = parts[0].dtype if parts[0].dtype == object else np.dtype(np.int64)
    if len(parts) == 1:
        return parts[0].astype(kind)
    streams = [s for owned in owners for s in owned]
    columns, rows, length = parts[0].shape
    each = rows // len(owners[0])
    out = np.empty((columns, len(streams), each, length), kind)
    place = {s: i for i, s in enumerate(sorted(streams))}
    for part, owned in zip(parts, owners, strict=True):
        out[:, [place[s] for s in owned]] = part.reshape(columns, len(owned), each, length)
    return out.reshape(columns, len(streams) * each, length)


def micro_batch_rows(micro_batch_tokens: int) -> Callable[[int, int], list[int]]:
    """Rows of each micro-batch for (row length, rows of a step): as few as fit the limit, and as even as they come.

    The sizes differ by at most one row, so compiled code has seen both after the first step. Ranks with equally many
    rows cut them alike, so they reach each collective together.
    """

    def rows(row_length: int, count: int) -> list[int]:
        limit = micro_batch_tokens // row_length
        if limit < 1:
            raise UserError(
                f"hardware.micro_batch_tokens is {micro_batch_tokens}, less than one row of {row_length} tokens "
                "(stage.sequence_length): raise it"
            )
        pieces = -(-count // limit)
        return [count // pieces + (piece < count % pieces) for piece in range(pieces)]

    return rows


def _used_up(source: str, *, trained: bool) -> str:
    saved = "What was trained is saved: the same command goes on from there" if trained else "Nothing was trained"
    return (
        f"data.sources.{source} has been read as often as its max_epochs allows, and the run goes on: raise "
        f"data.sources.{source}.max_epochs, lower its weight, shorten the run (stage.max_tokens), or go on without it "
        f"(data.exhausted=drop). {saved}"
    )


def _silent(source: int, row: int, line: int) -> None:
    """Nothing to report in the main process, where a traceback shows the row."""
