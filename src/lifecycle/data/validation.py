"""Held-out rows of each domain: whole items of the sources' own validation split, file, or hash share.

The same rows at every measurement, packed once at the start, shared out evenly among the ranks. Which documents they
are made of: `held_out.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lifecycle.batch import IGNORED, Example, Ids, Item, Pair, Prompt, PromptBatch
from lifecycle.data.clean.source import Source
from lifecycle.data.stream.packing import Packing, Piece, best_fit, is_document
from lifecycle.data.stream.pieces import Documents, Exhausted
from lifecycle.errors import UserError
from lifecycle.system.say_once import say_read


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutQuestion:
    """Of a held-out conversation or prompt: the ids that a model is asked with, and what stands there as the answer;
    of a prompt its text, and what graders read beside it (meta). source: its index."""

    prompt: Ids
    answer: Ids | str
    meta: Mapping[str, Any] = field(default_factory=dict)
    source: int = 0

    @classmethod
    def of(cls, item: Item, source: int = 0) -> HeldOutQuestion | None:
        """The first answer of a conversation, the chosen one of a pair, the known one of a prompt; None of a text, and
        of a prompt without an answer."""
        if isinstance(item, Prompt):
            if item.answer is None:
                return None
            return cls(prompt=item.ids, answer=item.answer, meta=item.meta, source=source)
        if isinstance(item, Pair):
            return cls(prompt=item.prompt, answer=item.chosen.ids[len(item.prompt) :])
        if not isinstance(item, Example) or is_document(item):
            return None
        assert item.trained is not None
        first = int(item.trained.argmax())
        length = int((~item.trained[first:]).argmax()) or len(item.ids) - first
        return cls(prompt=item.ids[:first], answer=item.ids[first : first + length]) if first else None


@dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """What is measured of one domain: (rows, T) arrays of packed rows, or prompts with their sources' indices.

    tokens: trained ones (of prompts: their number); bytes: UTF-8 bytes of the text of exactly these tokens, of which
    marks have none; None where a loss is no likelihood of one text, as of pairs, labelled answers and prompts.
    questions: of its conversations. wanted: positions asked of each of its sources.
    """

    domain: str
    packing: Packing
    rows: dict[str, NDArray[np.int32]]
    prompts: Sequence[tuple[Prompt, int]]
    tokens: int
    bytes: int | None
    documents: int
    questions: Sequence[HeldOutQuestion] = ()
    wanted: Mapping[str, int] = field(default_factory=dict)

    def beginnings(self, begin: int, tokens: int) -> list[list[int]]:
        """The first ids of every item that has more than `tokens` before its row's end; prompts whole. begin: the mark
        that a text begins with, parts of which are packed as well."""
        if self.packing.counts:
            return [prompt.ids.tolist() for prompt, _ in self.prompts]
        ids, number = self.rows["input_ids"], self.rows["document_ids"]
        starts = ids == begin if self.packing.cuts else (self.rows["position_ids"] == 0) & (number > 0)
        last = ids.shape[1] - tokens
        return [ids[r, c : c + tokens].tolist() for r, c in zip(*np.nonzero(starts), strict=True) if c < last]

    def batches(self, micro_rows: int, rank: int, world_size: int) -> list[Any]:
        """This rank's micro-batches; every rank gets equally many (rows of padding make up the number)."""
        count = len(self.prompts) if self.packing.counts else len(self.rows["input_ids"])
        group = micro_rows * world_size
        missing = -count % group
        out: list[Any] = []
        for at in range(rank * micro_rows, count + missing, group):
            index = np.arange(at, at + micro_rows)
            if self.packing.counts:
                out.append(PromptBatch.of(self.prompts[at : at + micro_rows], step=-1, first=at))
                continue
            part = np.stack([_rows_or_padding(k, v, index, count) for k, v in self.rows.items()])
            whole = self.packing.batch(torch.from_numpy(part).long())
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
    read: Callable[[Source, int], Sequence[Item]],
    *,
    tokens: int,
    row_length: int,
    packing: Packing,
    byte_count: Callable[[NDArray[np.int32]], int],
) -> dict[str, HeldOutSet]:
    """One set of about `tokens` positions a domain, shared by weight by those of its sources that say no number.

    `read` gives held-out items of a source that hold so many positions; `byte_count` the bytes of the text of ids.
    """
    domains: dict[str, list[Source]] = {}
    for source in sources:
        domains.setdefault(source.domain, []).append(source)
    packed = dict[str, HeldOutSet]()
    for domain, members in domains.items():
        pieces, asked, unfit = list[Piece](), dict[str, int](), dict[str, int]()
        for twins, wanted in _shares(members, weights, tokens):
            source = twins[0]
            found = [Piece(item, source.index) for item in read(source, wanted)]
            asked |= dict.fromkeys((s.name for s in twins), wanted)
            if isinstance(source.spec.validation, str) and wanted and not found:
                raise UserError(
                    f"data.sources.{source.name}.validation is '{source.spec.validation}', which gives no document "
                    "that passes the source's format and filters: name another split or file, or null for none"
                )
            pieces += found
            if found and not any(packing.laid(piece, row_length) for piece in found):
                unfit[source.name] = len(found)
        if pieces and (held := pack(domain, pieces, row_length, packing, byte_count)).tokens:
            packed[domain] = replace(held, wanted=asked)
            for name, count in unfit.items():
                _say_unmeasured(name, members, count, row_length)
        elif any(asked.values()) and any(s.spec.validation is not None for s in members):
            _say_unmeasured(domain, members, len(pieces), row_length)
    return packed


def _shares(members: Sequence[Source], weights: Mapping[str, float], tokens: int) -> Iterator[tuple[list[Source], int]]:
    """The sources of a domain, by their text, and how many of its `tokens` are asked of each."""
    trained = [weights[s.name] for s in members if weights[s.name]]
    mean = sum(trained) / len(trained) if trained else 1.0
    parts = {s.name: weights[s.name] or mean for s in members}  # of weight 0: measured, never trained on
    for twins in _by_text(members):
        wanted = int(tokens * sum(parts[s.name] for s in twins) / sum(parts.values()))
        stated = twins[0].spec.validation_tokens
        yield twins, stated if tokens and stated is not None else wanted


def _say_unmeasured(of: str, members: Sequence[Source], found: int, row_length: int) -> None:
    """Say why nothing of a domain, or of one of its sources, is measured that something was to be held out of."""
    names = ", ".join(source.name for source in members)
    why = (
        f"none of its {found:,} held-out items fits into a row of stage.sequence_length={row_length} with a trained "
        "token: raise that"
        if found
        else f"no row of {names} is held out: raise data.sources.NAME.validation.ratio, or name a split or a file there"
    )
    say_read(f"warning: nothing is measured of '{of}'", why)


def _by_text(members: Sequence[Source]) -> list[list[Source]]:
    """Sources that hold out the same text, which is measured once; one that says how much of it stands first, as what
    is replayed says of its parent."""
    found: dict[tuple[str, ...], list[Source]] = {}
    for source in sorted(members, key=lambda s: s.spec.validation_tokens is None):
        held = source.spec.validation, source.spec.validation_file
        found.setdefault((source.fingerprint, repr(held)), []).append(source)
    return list(found.values())


def collect(documents: Documents, *, tokens: int, source: int) -> list[Piece]:
    """Whole items of one source, until they hold `tokens` positions or the source ends."""
    pieces: list[Piece] = []
    total = 0
    while total < tokens:
        try:
            pieces.append(Piece(documents.next(), source))
        except Exhausted:
            break
        total += pieces[-1].positions
    return pieces


def pack(
    domain: str,
    documents: Sequence[Piece],
    row_length: int,
    packing: Packing,
    byte_count: Callable[[NDArray[np.int32]], int],
) -> HeldOutSet:
    """Items as validation rows: a text whole or in row-long parts, none is dropped; others as `packing` says."""
    laid = [part for piece in documents for part in packing.laid(piece, row_length)]
    rows = best_fit(laid, packing.room(row_length))
    packed = dict(zip(packing.columns, packing.arrays(rows, row_length), strict=True))
    prompts = [(piece.item, piece.source) for piece in laid if isinstance(piece.item, Prompt)]
    asked = [] if packing.judges else laid
    return HeldOutSet(
        domain=domain,
        packing=packing,
        rows=packed,
        prompts=prompts,
        tokens=int((packed["labels"] != IGNORED).sum()) if packed else len(prompts),
        bytes=byte_count(packed["labels"][packed["labels"] != IGNORED]) if packing.has_text else None,
        documents=len(documents),
        questions=[one for piece in asked if (one := HeldOutQuestion.of(piece.item, piece.source)) is not None],
    )
