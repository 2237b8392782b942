"""Which sequence stands in which row of the cache: plain Python and NumPy, no tensor in sight.

A sequence is one completion of one prompt. Sequences wait in order; a free row takes the next one. Where a row, at
work or done, still holds the prompt, the sequence starts from a copy of it; else the prompt is prefilled first, in the
row of its first sequence. All but the last token of a prompt are prefilled: the last is the first that is decoded, so
that every token is drawn in the same way. Rows that finish are free at once; while nothing waits, the rows at work are
kept together at the front.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

TOKEN, POSITION, NUMBER, SEED, PLACE = range(5)
"""Lines of the table of rows: the last token, its position (-1: at rest), tokens drawn so far, seed, sequence."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of some prompts, one line each: rows of the cache, where the part begins in each, how wide it is."""

    rows: list[int]
    prompts: list[int]
    start: int
    width: int


@dataclass(frozen=True, slots=True)
class Move:
    """The first `length` positions of row `source` go to row `target`."""

    source: int
    target: int
    length: int


class Schedule:
    """Where every sequence of `prompts` x `samples` stands; sequence n is completion n % samples of n // samples.

    table: (5, slots) int64, what the decode step needs to know of every row. prefill_tokens: at most so many in a
    chunk, over all its lines. together: several prompts may share a chunk.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        seeds: Sequence[int],
        slots: int,
        prefill_tokens: int,
        together: bool = True,
    ) -> None:
        self.prompts, self.samples, self.slots = prompts, samples, slots
        self._seeds, self._prefill_tokens, self._together = seeds, prefill_tokens, together
        self.waiting = deque(range(len(prompts) * samples))
        self.sequence: list[int | None] = [None] * slots
        self._holds: list[int | None] = [None] * slots
        self._group: dict[int, int] = {}
        self._prefilled = 0
        self.table = np.zeros((5, slots), np.int64)
        for row in range(slots):
            self._clear(row)
        self.changed = True
        self._entered: dict[int, Sequence[int]] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting) or self.active > 0

    @property
    def active(self) -> int:
        """How many rows at the front hold all that are at work."""
        at_work = self.at_work()
        return int(at_work[-1]) + 1 if len(at_work) else 0

    def at_work(self) -> Ints:
        """Rows with a sequence, in order."""
        return np.flatnonzero(self.table[POSITION] >= 0)

    def groups(self) -> dict[int, list[int]]:
        """Rows at work by the prompt that they continue, prompts and rows in order."""
        found: dict[int, list[int]] = {}
        for row in self.at_work().tolist():
            found.setdefault(int(self.table[PLACE, row]) // self.samples, []).append(row)
        return dict(sorted(found.items()))

    @property
    def prefilling(self) -> bool:
        """Whether prompts are being prefilled."""
        return bool(self._group)

    def admit(self) -> list[Move]:
        """Let waiting sequences into free rows; the moves to make at once, all from what stands there now.

        Begins a prefill for the prompts that no row holds. Does nothing during a prefill.
        """
        free = [row for row in range(self.slots) if self.sequence[row] is None]
        if self._group or not free or not self.waiting:
            return []
        moves = []
        holders = {p: row for row, p in enumerate(self._holds) if p is not None}
        while self.waiting and free:
            number = self.waiting[0]
            prompt = number // self.samples
            length = len(self.prompts[prompt]) - 1
            if length and prompt not in holders:
                break
            row = next((r for r in free if self._holds[r] == prompt), free[0])
            if length and holders[prompt] != row and self._holds[row] != prompt:
                moves.append(Move(holders[prompt], row, length))
            self._enter(self.waiting.popleft(), row)
            free.remove(row)
        self._begin_prefill(free)
        return moves

    def _begin_prefill(self, free: list[int]) -> None:
        """A row for every prompt among the next sequences that would fill the free rows."""
        for number in islice(self.waiting, len(free)):
            prompt = number // self.samples
            if prompt not in self._group and (self._together or not self._group):
                row = free[len(self._group)]
                self._group[prompt], self._holds[row], self._prefilled = row, None, 0

    def chunk(self) -> Chunk:
        """The next part of the prompts that are being prefilled."""
        lengths = {prompt: len(self.prompts[prompt]) - 1 for prompt in self._group}
        prompts = [prompt for prompt, length in lengths.items() if length > self._prefilled]
        longest = max(lengths.values()) - self._prefilled
        width = max(1, min(longest, self._prefill_tokens // len(prompts)))
        return Chunk([self._group[p] for p in prompts], prompts, self._prefilled, width)

    def prefilled(self, chunk: Chunk) -> None:
        """The chunk is in the cache."""
        self._prefilled = chunk.start + chunk.width
        if self._prefilled >= max(len(self.prompts[p]) - 1 for p in self._group):
            for prompt, row in self._group.items():
                self._holds[row] = prompt
            self._group = {}

    def step(self, rows: int, tokens: Ints) -> None:
        """The first `rows` rows each drew one token; those at rest drew nothing."""
        part = self.table[:, :rows]
        at_work = part[POSITION] >= 0
        part[TOKEN] = np.where(at_work, tokens, part[TOKEN])
        part[POSITION] += at_work
        part[NUMBER] += at_work

    def take_entered(self) -> dict[int, Sequence[int]]:
        """The prompts of the rows that came since the last call, for a table that is sent to the device now."""
        entered, self._entered, self.changed = self._entered, {}, False
        return entered

    def finish(self, rows: Sequence[int]) -> list[Move]:
        """These rows are done; the moves that keep the others together, to be made in order."""
        for row in rows:
            self._clear(row)
        if self.waiting or self._group:
            return []
        moves = []
        for row in sorted(rows):
            last = self.active - 1
            if last <= row:
                break
            moves.append(Move(last, row, int(self.table[POSITION, last])))
            self.table[:, row] = self.table[:, last]
            self.sequence[row], self._holds[row] = self.sequence[last], self._holds[last]
            self._clear(last)
        return moves

    def _enter(self, number: int, row: int) -> None:
        prompt = self.prompts[number // self.samples]
        self.table[:, row] = (prompt[-1], len(prompt) - 1, 0, self._seeds[number], number)
        self.sequence[row], self._holds[row] = number, number // self.samples
        self._entered[row] = prompt
        self.changed = True

    def _clear(self, row: int) -> None:
        self.table[:, row] = (0, -1, 0, 0, len(self._seeds))
        self.sequence[row] = None
        self.changed = True
