"""The assignment of sequences to rows of the cache: plain Python and NumPy, no tensors.

A sequence is one completion of one prompt. Sequences wait in order; a free row takes the next one that can begin. Where
a row, active or finished, still holds the prompt, the sequence starts from a copy of it; else the prompt is prefilled
first, in the row of its first sequence, chunk by chunk beside others: a short one is active as soon as it is complete,
however long its neighbours are. All but the last token of a prompt are prefilled: the last is the first that is
decoded, so that every token is drawn in the same way. Rows that finish are free at once, and go on with their own
prompt while samples of it wait, so that no prompt is prefilled twice; while nothing waits, the active rows are kept
together at the front. Where steps have powers of two of rows, that is done only when fewer would then be enough.

A sequence that is told something (`tell`: what a tool answered) keeps its row, and what that holds: the new tokens are
prefilled behind it, beside prompts, while other rows decode on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

TOKEN, POSITION, NUMBER, SEED, PLACE = range(5)
"""Lines of the table of rows: the last token, its position (-1: no sequence), tokens drawn so far, seed, sequence."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of some token ids, one line each: rows of the cache, the ids of each up to the one that is decoded next,
    where the part begins in them, and how wide it is."""

    rows: list[int]
    ids: list[Sequence[int]]
    starts: list[int]
    width: int


@dataclass(frozen=True, slots=True)
class Move:
    """The first `length` positions of row `source` go to row `target`."""

    source: int
    target: int
    length: int


@dataclass(slots=True)
class _Writing:
    """Ids that are prefilled but for the last, and how many are: a prompt, or a sequence that was told something, with
    its line of the table."""

    ids: Sequence[int]
    done: int
    prompt: int | None
    number: int = 0
    seed: int = 0
    place: int = 0


class Scheduler:
    """The rows of the sequences of `prompts` x `samples`; sequence n is completion n % samples of prompt n // samples.

    table: (5, slots) int64, what the decode step reads of every row. prefill_tokens: at most so many in a chunk, over
    all its lines. together: several prompts may share a chunk. powers: decode steps have powers of two of rows.
    openings: what sequences are told before their first token.
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
        powers: bool = False,
        openings: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.prompts, self.samples, self.slots = prompts, samples, slots
        self._openings = openings or {}
        self._seeds, self._prefill_tokens, self._together, self._powers = seeds, prefill_tokens, together, powers
        self._next = dict.fromkeys(range(len(prompts)), 0)  # prompts with samples that wait, and the first of these
        self.sequence: list[int | None] = [None] * slots
        self._holds: list[int | None] = [None] * slots
        self._writing: dict[int, _Writing] = {}  # rows that are being prefilled
        self.table = np.zeros((5, slots), np.int64)
        for row in range(slots):
            self._clear(row)
        self.changed = True
        self._entered: dict[int, Sequence[int]] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._next) or bool(self._writing) or self.active > 0

    @property
    def active(self) -> int:
        """How many rows at the front include all active ones."""
        active = self.active_rows()
        return int(active[-1]) + 1 if len(active) else 0

    def active_rows(self) -> Ints:
        """Rows that decode a sequence, ascending."""
        return np.flatnonzero(self.table[POSITION] >= 0)

    def groups(self) -> dict[int, list[int]]:
        """Prompt -> the active rows that continue it; prompts and rows ascending."""
        found: dict[int, list[int]] = {}
        for row in self.active_rows().tolist():
            found.setdefault(int(self.table[PLACE, row]) // self.samples, []).append(row)
        return dict(sorted(found.items()))

    @property
    def prefilling(self) -> bool:
        """Whether anything is being prefilled."""
        return bool(self._writing)

    def admit(self) -> list[Move]:
        """Give free rows to waiting sequences. Returns the copies to make, all at once, from the present cache.

        Begins a prefill for the prompts that no row holds, among the next sequences that would fill the free rows.
        """
        free = [row for row in range(self.slots) if self.sequence[row] is None and row not in self._writing]
        for row in [row for row in free if self._holds[row] in self._next]:
            if self._holds[row] in self._next:
                self._enter(self._holds[row], row)  # type: ignore[arg-type]
                free.remove(row)
        moves = []
        holders = {prompt: row for row, prompt in enumerate(self._holds) if prompt is not None}
        written = {one.prompt for one in self._writing.values()}
        claimed = 0  # rows that further samples of prompts in prefill will want
        for prompt, sample in list(self._next.items()):
            if len(free) <= claimed:
                break
            length = len(self.prompts[prompt]) - 1
            if length and prompt not in holders:
                claimed += self.samples - sample - 1
                if prompt not in written:
                    row = free.pop(0)
                    self._writing[row], self._holds[row] = _Writing(self.prompts[prompt], 0, prompt), None
                continue
            for _ in range(min(self.samples - sample, len(free) - claimed)):
                if length:
                    moves.append(Move(holders[prompt], free[0], length))
                self._enter(prompt, free.pop(0))
        return moves

    def chunk(self) -> Chunk:
        """The next part of what is being prefilled: the shortest first, whole where they fit, and at most a quarter of
        it padding. Rows that begin are not mixed with rows that go on: the former have nothing in the cache to read."""
        left = sorted((len(one.ids) - 1 - one.done, row) for row, one in self._writing.items())
        begins = self._writing[left[0][1]].done == 0
        lines, used, width = list[int](), 0, 0
        for positions, row in left:
            wide = min(positions, self._prefill_tokens)
            size = wide * (len(lines) + 1)
            if lines and (not self._together or size > self._prefill_tokens or 4 * (used + wide) < 3 * size):
                break
            if (self._writing[row].done == 0) == begins:
                lines.append(row)
                used, width = used + wide, wide
        parts = [self._writing[row] for row in lines]
        return Chunk(lines, [one.ids for one in parts], [one.done for one in parts], width)

    def prefilled(self, chunk: Chunk) -> None:
        """Note that the chunk is in the cache."""
        for row in chunk.rows:
            one = self._writing[row]
            one.done += chunk.width
            if one.done < len(one.ids) - 1:
                continue
            del self._writing[row]
            if one.prompt is not None:
                self._holds[row] = one.prompt
                continue
            self.table[:, row] = (one.ids[-1], len(one.ids) - 1, one.number, one.seed, one.place)
            self._entered[row], self.changed = one.ids, True

    def tell(self, row: int, ids: Sequence[int]) -> None:
        """The sequence of an active row goes on behind `ids`: its own so far, and what it is told."""
        _, position, number, seed, place = self.table[:, row].tolist()
        told = len(ids) - 1 - position
        self._writing[row] = _Writing(ids, position, None, number + told, seed, place)
        sequence = self.sequence[row]
        self._clear(row)
        self.sequence[row] = sequence

    def step(self, rows: int, tokens: Ints) -> None:
        """Enter the `tokens` that the first `rows` rows drew, one each; rows without a sequence drew nothing."""
        part = self.table[:, :rows]
        active = part[POSITION] >= 0
        part[TOKEN] = np.where(active, tokens, part[TOKEN])
        part[POSITION] += active
        part[NUMBER] += active

    def take_entered(self) -> dict[int, Sequence[int]]:
        """The sequences that began since the last call, as row -> prompt; `changed` becomes False."""
        entered, self._entered, self.changed = self._entered, {}, False
        return entered

    def finish(self, rows: Sequence[int]) -> list[Move]:
        """Free these rows. Returns the moves that keep the others at the front, to be made in order."""
        for row in rows:
            self._clear(row)
        if self._next or (self._powers and power(len(self.active_rows())) == power(self.active)):
            return []
        moves = []
        for row in (row for row, one in enumerate(self.sequence) if one is None and row not in self._writing):
            last = self.active - 1
            if last <= row:
                break
            moves.append(Move(last, row, int(self.table[POSITION, last])))
            self.table[:, row] = self.table[:, last]
            self.sequence[row], self._holds[row] = self.sequence[last], self._holds[last]
            self._clear(last)
        return moves

    def _enter(self, prompt: int, row: int) -> None:
        """The next sample of the prompt begins in the row."""
        ids, sample = self.prompts[prompt], self._next[prompt]
        number = prompt * self.samples + sample
        self.table[:, row] = (ids[-1], len(ids) - 1, 0, self._seeds[number], number)
        self.sequence[row], self._holds[row] = number, prompt
        self._entered[row] = ids
        self.changed = True
        if number in self._openings:
            self.tell(row, [*ids, *self._openings[number]])
        if sample + 1 < self.samples:
            self._next[prompt] = sample + 1
        else:
            del self._next[prompt]

    def _clear(self, row: int) -> None:
        self.table[:, row] = (0, -1, 0, 0, len(self._seeds))
        self.sequence[row] = None
        self.changed = True


def power(rows: int) -> int:
    """The power of two that so many rows fit into."""
    return 1 << max(rows - 1, 0).bit_length()
