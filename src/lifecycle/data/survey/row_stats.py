"""Counts, lengths and samples of some rows of a source; parts that several processes measured add up.

Apart from `mixture.py` because the processes import what they need, and this needs little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.clean import contamination_report
from lifecycle.data.clean.filter_row import HELD_OUT, judge
from lifecycle.data.clean.source import Source
from lifecycle.data.clean.walk import walk_rows
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.in_words import as_text
from lifecycle.data.read.quarantine import shown
from lifecycle.data.read.row import BadRow, RawRow, parse
from lifecycle.system.seeds import derive
from lifecycle.system.unicode import well_formed
from lifecycle.tokenizer.tokenizer import Tokenizer

SHOWN_CHARACTERS = 300
Sample = tuple[int, str, int, str]  # priority, verdict, row, text


@dataclass
class Measured:
    """What was found in some rows of a source; parts add up."""

    counts: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    lengths: list[NDArray[np.int32]] = field(default_factory=list)
    bytes: int = 0
    samples: list[Sample] = field(default_factory=list)

    def add(self, other: Measured, most: int) -> None:
        """Take in another part, and keep `most` samples of each verdict: those of least priority."""
        self.counts += other.counts
        self.masked += other.masked
        self.lengths += other.lengths
        self.bytes += other.bytes
        self.samples = least(self.samples + other.samples, most)


@dataclass(frozen=True)
class Measure:
    """The work of one process on some rows of a source."""

    tokenizer: Tokenizer
    seed: int
    samples: int

    def __call__(self, source: Source, raws: list[RawRow]) -> Measured:
        out, texts = Measured(), list[str]()
        for raw in raws:
            text, verdict, contaminated, masked, _ = judge(raw, source)
            out.counts[verdict] += 1
            out.masked.update(masked)
            if contaminated and source.contaminated is not None:
                contamination_report.record(source.contaminated, raw, contaminated)
            if text is not None and verdict != HELD_OUT:
                texts.append(text)
                out.bytes += len(well_formed(text).encode())
            out.samples.append((priority(self.seed, source, raw.ordinal), verdict, raw.ordinal, ""))
        out.lengths.append(np.array([len(ids) for ids in self.tokenizer.documents(texts)], np.int32))
        kept = {row: (rank, verdict) for rank, verdict, row, _ in least(out.samples, self.samples)}
        out.samples = [(*kept[raw.ordinal], raw.ordinal, excerpt(raw, source)) for raw in raws if raw.ordinal in kept]
        return out


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
    """A random number of the row: the samples of least priority are a fair draw, the same in every process."""
    return derive(seed, "sample of rows", source.name, row)


def least(samples: Sequence[Sample], most: int) -> list[Sample]:
    """The `most` samples of least priority of each verdict."""
    kept, number = list[Sample](), Counter[str]()
    for sample in sorted(samples):
        number[sample[1]] += 1
        if number[sample[1]] <= most:
            kept.append(sample)
    return kept


def excerpt(raw: RawRow, source: Source) -> str:
    """The start of a row's document as it was before any filter; of a row that gives none, the row itself."""
    try:
        record = to_record(parse(raw), spec=source.spec, name=source.name, row_id="")
    except BadRow:
        return shown(raw.payload)
    return well_formed(as_text(record)[:SHOWN_CHARACTERS])
