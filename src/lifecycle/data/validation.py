"""Held-out rows of each domain: whole documents of the sources' own validation split, file, or hash share.

The same rows at every measurement, packed once at the start, shared out evenly among the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lifecycle.batch import TokenBatch
from lifecycle.data.packing import COLUMNS, Piece, Row, arrays, best_fit, cut
from lifecycle.data.source import Source
from lifecycle.data.stream import Documents, Exhausted
from lifecycle.errors import UserError


@dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """The validation rows of one domain: (rows, T) batch arrays, their trained tokens and the bytes of their text."""

    domain: str
    rows: dict[str, NDArray[np.int32]]
    tokens: int
    bytes: int
    documents: int

    def batches(self, micro_rows: int, rank: int, world_size: int) -> list[TokenBatch]:
        """This rank's micro-batches; every rank gets equally many (rows of padding make up the number)."""
        count = len(self.rows["input_ids"])
        group = micro_rows * world_size
        missing = -count % group
        out = []
        for at in range(rank * micro_rows, count + missing, group):
            index = np.arange(at, at + micro_rows)
            part = {k: _rows_or_padding(k, v, index, count) for k, v in self.rows.items()}
            whole = TokenBatch.of({k: torch.from_numpy(v).long() for k, v in part.items()})
            out.append(whole.rows(0, micro_rows))
        return out


def _rows_or_padding(name: str, values: NDArray[np.int32], index: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    rows = values[np.minimum(index, count - 1)].copy()
    rows[index >= count] = {"labels": -100, "source_ids": -1}.get(name, 0)
    return rows


def held_out_sets(
    sources: Sequence[Source],
    weights: Mapping[str, float],
    open_documents: Callable[[Source], Documents | None],
    *,
    tokens: int,
    row_length: int,
    byte_count: Callable[[NDArray[np.int32]], int],
) -> dict[str, HeldOutSet]:
    """One set of about `tokens` positions a domain; the sources of a domain share it by weight.

    `open_documents` gives a source's held-out documents, or None; `byte_count` the bytes of the text of ids.
    """
    domains: dict[str, list[Source]] = {}
    for source in sources:
        domains.setdefault(source.domain, []).append(source)
    packed = {}
    for domain, members in domains.items():
        trained = [weights[s.name] for s in members if weights[s.name]]
        mean = sum(trained) / len(trained) if trained else 1.0
        parts = [weights[s.name] or mean for s in members]  # of weight 0: measured, never trained on
        pieces = []
        for source, part in zip(members, parts, strict=True):
            documents = open_documents(source)
            wanted = int(tokens * part / sum(parts))
            found = collect(documents, tokens=wanted, source=source.index) if documents else []
            if isinstance(source.spec.validation, str) and wanted and not found:
                raise UserError(
                    f"data.sources.{source.name}.validation is '{source.spec.validation}', which gives no document "
                    "that passes the source's format and filters: name another split or file, or null for none"
                )
            pieces += found
        if pieces:
            packed[domain] = pack(domain, pieces, row_length, sum(byte_count(piece.ids) for piece in pieces))
    return packed


def collect(documents: Documents, *, tokens: int, source: int) -> list[Piece]:
    """Whole documents of one source, until they hold `tokens` positions or the source ends."""
    pieces: list[Piece] = []
    total = 0
    while total < tokens:
        try:
            ids = documents.next()
        except Exhausted:
            break
        pieces.append(Piece(ids, source))
        total += len(ids) - 1
    return pieces


def pack(domain: str, documents: Sequence[Piece], row_length: int, byte_count: int) -> HeldOutSet:
    """Documents as validation rows; every document is packed whole or in row-long parts, none is dropped."""
    parts = [part for piece in documents for part in cut(piece, row_length)]
    rows: list[Row] = best_fit(parts, row_length)
    return HeldOutSet(
        domain=domain,
        rows=dict(zip(COLUMNS, arrays(rows, row_length), strict=True)),
        tokens=sum(part.positions for part in parts),
        bytes=byte_count,
        documents=len(documents),
    )
