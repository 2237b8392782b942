"""The outcome of a row: its text and record, and the verdict of the format, the filters and the held-out split on it.

The verdict is a function of the row alone, so it is the same when rows are streamed, prepared or scanned, and under
every view: the filters and the held-out split read the text that the row has in the view `text`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

from lifecycle.batch import Record
from lifecycle.data.clean.bad_rows import BAD, DROPPED
from lifecycle.data.clean.contamination import Found
from lifecycle.data.clean.source import Source
from lifecycle.data.quality.pii import mask
from lifecycle.data.quality.rules import drop_reason
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.forms.preferences import SAME
from lifecycle.data.read.in_words import as_text, held_out_by, is_preference
from lifecycle.data.read.row import BadRow, RawRow, parse

KEPT = "kept:"
HELD_OUT = "held:out"
CONTAMINATED = "dropped:contaminated"


class FilteredRow(NamedTuple):
    """text, record: of a row that is kept or held out, both with the same masking; else None.

    verdict: `kept:`, `kept:masked`, `held:out`, `dropped:REASON` or `bad:REASON`. An empty row (a blank line, no text)
    is `dropped:empty`, since it is not broken. contaminated: the evaluation items for which the row was dropped.
    masked: number of replacements in it by kind.
    """

    text: str | None
    verdict: str
    contaminated: tuple[Found, ...] = ()
    masked: Mapping[str, int] = {}
    record: Record | None = None


def filter_row(raw: RawRow, source: Source) -> FilteredRow:
    """Parse a raw row of `source` and apply the source's format, filters and held-out split to it."""
    try:
        row = parse(raw)
        record = to_record(row, spec=source.spec, name=source.name, row_id=f"{source.name}:{raw.ordinal}")
        text = as_text(record)
    except BadRow as bad:
        return FilteredRow(None, DROPPED.get(bad.reason, f"{BAD}{bad.reason}"))
    reason = drop_reason(text, source.spec.filters)
    if reason is not None:
        return FilteredRow(None, f"dropped:{reason}")
    if source.evaluation is not None and (found := source.evaluation.find(text)):
        return FilteredRow(None, CONTAMINATED, found)
    masked: Mapping[str, int] = {}
    if source.spec.filters.mask_pii:
        text, masked = mask(text)
        record = _masked(record) if masked else record
        if record.chosen is not None and record.chosen == record.rejected:  # they differed only in what was masked
            return FilteredRow(None, DROPPED[SAME])
    decides = held_out_by(record) if is_preference(record) else text  # the text is masked as a whole
    held = source.held_out is not None and source.held_out.holds(decides)
    return FilteredRow(text, HELD_OUT if held else f"{KEPT}masked" if masked else KEPT, masked=masked, record=record)


def _masked(record: Record) -> Record:
    """The record with all its texts masked, wherever they stand in it; its names stay."""
    named = [f.name for f in fields(record) if f.name not in ("id", "source", "domain")]
    return replace(record, **{name: _masked_texts(getattr(record, name)) for name in named})


def _masked_texts(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)[0]
    if isinstance(value, Mapping):
        return {key: _masked_texts(one) for key, one in value.items()}
    return [_masked_texts(one) for one in value] if isinstance(value, list) else value
