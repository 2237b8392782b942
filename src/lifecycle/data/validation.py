"""Held-out rows of each domain: whole documents of the sources' own validation split, file, or hash share.

The same rows at every measurement, packed once at the start, shared out evenly among the ranks. Which documents they
are made of: `held_out.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lifecycle.batch import IGNORED, TokenBatch
from lifecycle.data.clean.source import Source
from lifecycle.data.stream.packing import COLUMNS, Piece, Row, arrays, best_fit, cut
from lifecycle.data.stream.pieces import Documents, Exhausted
from lifecycle.errors import UserError
from lifecycle.tokenizer.tokenizer import Ids


@dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """The validation rows of one domain: (rows, T) batch arrays, their trained tokens and the bytes of their text.

    wanted: positions asked of each of its sources.
    """

    domain: str
    rows: dict[str, NDArray[np.int32]]
    tokens: int
    bytes: int
    documents: int
    wanted: Mapping[str, int] = field(default_factory=dict)

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


def described(held_out: Mapping[str, HeldOutSet]) -> dict[str, dict[str, Any]]:
    """For run.json: what is measured of each domain."""
    return {
        domain: {"tokens": held.tokens, "documents": held.documents, "wanted": dict(held.wanted)}
        for domain, held in held_out.items()
    }


def _rows_or_padding(name: str, values: NDArray[np.int32], index: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    rows = values[np.minimum(index, count - 1)].copy()
    rows[index >= count] = {"labels": IGNORED, "source_ids": -1}.get(name, 0)
    return rows


def held_out_sets(
    sources: Sequence[Source],
    weights: Mapping[str, float],
    read: Callable[[Source, int], Sequence[Ids]],
    *,
    tokens: int,
    row_length: int,
    byte_count: Callable[[NDArray[np.int32]], int],
) -> dict[str, HeldOutSet]:
    """One set of about `tokens` positions a domain; the sources of a domain share it by weight, but for those that say
    their own number.

    `read` gives held-out documents of a source that hold so many positions; `byte_count` the bytes of the text of ids.
    """
    domains: dict[str, list[Source]] = {}
    for source in sources:
        domains.setdefault(source.domain, []).append(source)
    packed = {}
    for domain, members in domains.items():
        trained = [weights[s.name] for s in members if weights[s.name]]
        mean = sum(trained) / len(trained) if trained else 1.0
        parts = {s.name: weights[s.name] or mean for s in members}  # of weight 0: measured, never trained on
        pieces, asked = list[Piece](), dict[str, int]()
        for twins in _by_text(members):
            source = twins[0]
            wanted = int(tokens * sum(parts[s.name] for s in twins) / sum(parts.values()))
            if tokens and source.spec.validation_tokens is not None:
                wanted = source.spec.validation_tokens
            found = [Piece(ids, source.index) for ids in read(source, wanted)]
            asked |= dict.fromkeys((s.name for s in twins), wanted)
            if isinstance(source.spec.validation, str) and wanted and not found:
                raise UserError(
                    f"data.sources.{source.name}.validation is '{source.spec.validation}', which gives no document "
                    "that passes the source's format and filters: name another split or file, or null for none"
                )
            pieces += found
        if pieces:
            size = sum(byte_count(piece.ids) for piece in pieces)
            packed[domain] = replace(pack(domain, pieces, row_length, size), wanted=asked)
    return packed


def _by_text(members: Sequence[Source]) -> list[list[Source]]:
    """Sources that hold out the same text, which is measured once; one that says how much of it stands first, as what
    is replayed says of its parent."""
    found: dict[tuple[str, ...], list[Source]] = {}
    for source in sorted(members, key=lambda s: s.spec.validation_tokens is None):
        held = source.spec.validation, source.spec.validation_file
        found.setdefault((source.fingerprint, repr(held)), []).append(source)
    return list(found.values())


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
