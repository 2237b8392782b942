"""What recorded decode steps drew, in places of its own on the device, until the host looks.

A recorded step writes there, and advances the table of rows, by itself: between replays the host starts nothing.

Shapes: B rows of a step, S of the table, T steps, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lifecycle.model.layers.gpu import available
from lifecycle.rollout.sampling.draw import Drawn
from lifecycle.rollout.sampling.row_sets import RowSets
from lifecycle.rollout.scheduler import NUMBER, POSITION, TOKEN

AHEAD = 8
"""Decode steps on a GPU before the host looks, where nobody waits for a token."""


class Noted:
    """Room for the draws of `AHEAD` steps of `slots` rows."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._step = torch.zeros(slots, dtype=torch.long, device=device)  # of each row, so that no row waits for others
        self._ids = torch.zeros(AHEAD, slots, dtype=torch.long, device=device)
        self._facts = torch.zeros(AHEAD, 3, slots, dtype=torch.float32, device=device)
        self._sets: RowSets | None = None
        self._experts: Tensor | None = None
        self._has_kernels = available.is_there(device)

    def restart(self) -> None:
        """The next step is the first."""
        self._step.zero_()

    def set_up(self, table: Tensor, drawn: Drawn, seen_SV: Tensor | None, visited: Tensor | None) -> None:
        """Make and compile what `note` needs for such draws; nothing is noted."""
        if self._experts is None and visited is not None:
            shape = (AHEAD, len(self._step), *visited.shape[1:])
            self._experts = torch.zeros(shape, dtype=torch.int16, device=visited.device)
        self._note_experts(visited)  # where the next step writes
        if self._sets is None and isinstance(drawn.kept, RowSets):
            counts, ids, bits = (x.new_empty(AHEAD, len(self._step), *x.shape[1:]) for x in drawn.kept[:3])
            self._sets = RowSets(counts, ids, bits, drawn.kept.vocab)
        if self._has_kernels:
            self._launch(table, drawn, seen_SV, rows=0)
        if isinstance(drawn.kept, RowSets):
            self._keep(drawn.kept, rows=1)  # where the next step writes

    def note(self, table: Tensor, drawn: Drawn, seen_SV: Tensor | None, visited: Tensor | None) -> None:
        """Write down the draws of the first rows, those of `table` (5, B), and the experts (B, layers, A) that they
        visited, where these are noted; advance the active rows."""
        self._note_experts(visited)
        if isinstance(drawn.kept, RowSets):
            self._keep(drawn.kept, rows=table.shape[1])
        if self._has_kernels and drawn.logprobs.dtype == torch.float32:
            return self._launch(table, drawn, seen_SV, rows=table.shape[1])
        n = table.shape[1]
        step_B, rows_B = self._step[:n], torch.arange(n, device=table.device)
        self._ids[step_B, rows_B] = drawn.ids
        self._facts[step_B, :, rows_B] = torch.stack(drawn[1:4], dim=-1).float()
        step_B += 1
        return advance(table, drawn.ids, seen_SV, rows_B)

    def first(self, steps: int, rows: int) -> tuple[Tensor, Tensor]:
        """Ids (T, B) and facts (T, B, 3) of the steps since the last `restart`."""
        return self._ids[:steps, :rows], self._facts[:steps, :, :rows].transpose(1, 2)

    def experts(self, steps: int, rows: int) -> Tensor | None:
        """(T, B, layers, A) of the same steps; None where they are not noted."""
        return None if self._experts is None else self._experts[:steps, :rows]

    def sets(self, step: int, rows: int) -> RowSets:
        """What a step since the last `restart` drew from; only where it was drawn by the kernel."""
        assert self._sets is not None
        counts, ids, bits, vocab = self._sets
        return RowSets(counts[step], ids[step], bits[step], vocab).first(rows)

    def _note_experts(self, visited: Tensor | None) -> None:
        if self._experts is not None and visited is not None:
            rows_B = torch.arange(len(visited), device=visited.device)
            self._experts[self._step[: len(rows_B)], rows_B] = visited.to(torch.int16)

    def _keep(self, kept: RowSets, *, rows: int) -> None:
        from lifecycle.rollout.sampling.gpu.step_kernels import keep_kernel

        assert self._sets is not None
        words = kept.bits_LW.shape[1]
        keep_kernel[(rows,)](
            *kept[:3], self._step, *self._sets[:3], len(self._step), C=kept.ids_LC.shape[1], W=words, BLOCK=1024
        )

    def _launch(self, table: Tensor, drawn: Drawn, seen_SV: Tensor | None, *, rows: int) -> None:
        from lifecycle.rollout.sampling.gpu.step_kernels import ROWS, note_kernel

        note_kernel[(max(1, -(-rows // ROWS)),)](
            *(x.contiguous() for x in drawn[:4]),
            table,
            table.stride(0),
            drawn.ids if seen_SV is None else seen_SV.view(torch.uint8),
            0 if seen_SV is None else seen_SV.stride(0),
            self._step,
            self._ids,
            self._facts,
            self._ids.shape[1],
            rows,
            TOKEN=TOKEN,
            POSITION=POSITION,
            NUMBER=NUMBER,
            PENALISED=seen_SV is not None,
            ROWS=ROWS,
        )


def advance(table: Tensor, ids_B: Tensor, seen_SV: Tensor | None, rows_B: Tensor) -> None:
    """Enter the drawn tokens into the table of rows `rows_B`; the active ones have seen them, and go on."""
    active = table[POSITION] >= 0
    if seen_SV is not None:
        seen_SV[rows_B, ids_B] |= active
    table[TOKEN] = ids_B
    table[POSITION] += active
    table[NUMBER] += active
