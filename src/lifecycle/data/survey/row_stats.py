"""Counts, lengths and samples of some rows of a source; the results of several processes add up.

A module of its own, beside `mixture.py`, so that the processes import little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lifecycle.batch import Item, Pair, Prompt, positions
from lifecycle.data.clean import contamination_report
from lifecycle.data.clean.bad_rows import BAD
from lifecycle.data.clean.filter_row import HELD_OUT, FilteredRow, filter_row
from lifecycle.data.clean.source import Source
from lifecycle.data.clean.walk import walk_rows
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.in_words import as_text
from lifecycle.data.read.quarantine import shown
from lifecycle.data.read.row import BadRow, RawRow, parse
from lifecycle.data.survey.shown_items import Shown, shown_item, trained_of
from lifecycle.data.views import Maker
from lifecycle.system.seeds import derive
from lifecycle.system.unicode import well_formed

SHOWN_CHARACTERS = 300
Sample = tuple[int, str, int, str]  # priority, verdict, row, text


@dataclass
class Measured:
    """What was found in some rows of a source; parts add up.

    lengths: tokens of each training item. positions: labels of a pass, trained: those that are trained. items: by their
    row, those of the samples that are trained on.
    """

    counts: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    lengths: list[NDArray[np.int32]] = field(default_factory=list)
    bytes: int = 0
    positions: int = 0
    trained: int = 0
    samples: list[Sample] = field(default_factory=list)
    items: dict[int, Shown] = field(default_factory=dict)

    def add(self, other: Measured, most: int) -> None:
        """Add another part; of the samples of each verdict the `most` with the lowest priority numbers stay."""
        self.counts += other.counts
        self.masked += other.masked
        self.lengths += other.lengths
        self.bytes += other.bytes
        self.positions += other.positions
        self.trained += other.trained
        self.samples = least(self.samples + other.samples, most)
        kept = {row for _, _, row, _ in self.samples}
        self.items = {row: item for row, item in (self.items | other.items).items() if row in kept}


@dataclass(frozen=True)
class Measure:
    """The work of one process on some rows of a source."""

    make: Maker
    seed: int
    samples: int

    def __call__(self, source: Source, raws: list[RawRow]) -> Measured:
        out, usable, verdicts = Measured(), dict[int, FilteredRow](), dict[int, str]()
        for raw in raws:
            filtered = filter_row(raw, source)
            verdicts[raw.ordinal] = filtered.verdict
            out.masked.update(filtered.masked)
            if filtered.contaminated and source.contaminated is not None:
                contamination_report.record(source.contaminated, raw, filtered.contaminated)
            if filtered.text is not None and filtered.verdict != HELD_OUT:
                usable[raw.ordinal] = filtered
        made = dict(zip(usable, self.make(list(usable.values())), strict=True))
        items = {row: item for row, item in made.items() if not isinstance(item, str)}
        verdicts |= {row: f"{BAD}{reason}" for row, reason in made.items() if isinstance(reason, str)}
        for row, item in items.items():
            out.bytes += len(well_formed(usable[row].text or "").encode())
            out.positions += positions(item)
            out.trained += trained(item)
        out.counts.update(verdicts.values())
        out.lengths.append(np.array([length(item) for item in items.values()], np.int32))
        ranked = [(priority(self.seed, source, row), verdict, row, "") for row, verdict in verdicts.items()]
        kept = {row: (rank, verdict) for rank, verdict, row, _ in least(ranked, self.samples)}
        out.samples = [(*kept[raw.ordinal], raw.ordinal, excerpt(raw, source)) for raw in raws if raw.ordinal in kept]
        out.items = {row: shown_item(items[row], self.make.tokenizer) for row in kept if row in items}
        return out


def length(item: Item) -> int:
    """Tokens of an item: of a pair, of both sides."""
    return len(item.chosen.ids) + len(item.rejected.ids) if isinstance(item, Pair) else len(item.ids)


def trained(item: Item) -> int:
    """Tokens of an item that are trained."""
    if isinstance(item, Prompt):
        return 0
    sides = (item.chosen, item.rejected) if isinstance(item, Pair) else (item,)
    return sum(int(trained_of(side).sum()) for side in sides)


def left_out_samples(source: Source, seed: int, most: int) -> list[Sample]:
    """Samples of the rows that are left out because of others."""
    chosen: dict[int, tuple[int, str]] = {}
    for reason, ordinals in source.left_out.items():
        ranked = sorted((priority(seed, source, int(row)), int(row)) for row in ordinals)[:most]
        chosen |= {row: (rank, f"dropped:{reason}") for rank, row in ranked}
    if not chosen:
        return []
    found = walk_rows(source, wanted=chosen.__contains__)
    return [(*chosen[raw.ordinal], raw.ordinal, excerpt(raw, source)) for raw in found]


def priority(seed: int, source: Source, row: int) -> int:
    """A random number of the row, the same in every process: rows with the lowest numbers are a uniform sample."""
    return derive(seed, "sample of rows", source.name, row)


def least(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Of each verdict, the `most` samples with the lowest priority numbers."""
    kept, number = list[Sample](), Counter[str]()
    for sample in sorted(samples):
        number[sample[1]] += 1
        if number[sample[1]] <= most:
            kept.append(sample)
    return kept


def excerpt(raw: RawRow, source: Source) -> str:
    """The start of a row's document before any filter; of a bad row, the start of the row as its file has it."""
    try:
        record = to_record(parse(raw), spec=source.spec, name=source.name, row_id="")
    except BadRow:
        return shown(raw.payload)
    return well_formed(as_text(record)[:SHOWN_CHARACTERS])
