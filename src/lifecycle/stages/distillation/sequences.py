"""The sequences of packed rows, each by itself, and rows packed from sequences; all on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lifecycle.batch import IGNORED, TokenBatch, first_fit
from lifecycle.stages.beside.known import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSequence:
    """One sequence of a row. ids, labels: (n,) int64. weights: (n,) float32; None: all 1. source: its index.
    sampler_logp: with which the student drew its trained tokens; None for one of the data."""

    ids: Tensor
    labels: Tensor
    position: int
    source: int
    weights: Tensor | None = None
    sampler_logp: Tensor | None = None

    @property
    def trained(self) -> int:
        """How many of its tokens are trained."""
        return int((self.labels != IGNORED).sum())

    @property
    def key(self) -> bytes:
        """A hash of what it is."""
        content = torch.cat([self.ids, self.labels]).numpy().tobytes()
        return digest(content + str(self.position).encode())


def sequences_of(batch: TokenBatch) -> list[PackedSequence]:
    """Those of all rows, in their order; they hold the trained tokens of the batch one after the other."""
    out = []
    for row, places in enumerate(batch.document_ids):
        for number in range(1, int(places.max()) + 1):
            at = (places == number).nonzero()[:, 0]
            part = slice(int(at[0]), int(at[-1]) + 1)
            out.append(
                PackedSequence(
                    ids=batch.input_ids[row, part],
                    labels=batch.labels[row, part],
                    position=int(batch.position_ids[row, part.start]),
                    source=int(batch.source_ids[row, part.start]),
                    weights=None if batch.weights is None else batch.weights[row, part],
                )
            )
    return out


def in_rows(sequences: Sequence[PackedSequence], length: int) -> list[list[PackedSequence]]:
    """Rows of at most `length` positions: each sequence goes into the first that has room for it."""
    return [[sequences[i] for i in row] for row in first_fit([len(one.ids) for one in sequences], length)]


def packed(rows: Sequence[Sequence[PackedSequence]], length: int, *, weighted: bool, least: int = 1) -> TokenBatch:
    """A micro-batch of these rows; at least one, and at least `least`, filled up with padding."""
    shape = (max(len(rows), least, 1), length)
    tensors = {
        name: torch.zeros(shape, dtype=torch.long, device="cpu")
        for name in ("input_ids", "position_ids", "document_ids")
    }
    tensors |= {"labels": torch.full(shape, IGNORED, device="cpu"), "source_ids": torch.full(shape, -1, device="cpu")}
    if weighted:
        tensors["weights"] = torch.ones(shape, dtype=torch.float32, device="cpu")
    for number, row in enumerate(rows):
        at = 0
        for place, one in enumerate(row, start=1):
            part = slice(at, at + len(one.ids))
            tensors["input_ids"][number, part], tensors["labels"][number, part] = one.ids, one.labels
            tensors["position_ids"][number, part] = torch.arange(len(one.ids), device="cpu") + one.position
            tensors["document_ids"][number, part], tensors["source_ids"][number, part] = place, one.source
            if weighted and one.weights is not None:
                tensors["weights"][number, part] = one.weights
            at = part.stop
    return TokenBatch.of(tensors)
