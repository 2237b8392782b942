"""What becomes of a row: its text, and the verdict of the format, the filters and the held-out share on it.

The verdict is a function of the row alone, so it is the same when rows are streamed, prepared or scanned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lifecycle.data.clean.bad_rows import BAD, DROPPED
from lifecycle.data.clean.contamination import Found
from lifecycle.data.clean.source import Source
from lifecycle.data.quality.pii import mask
from lifecycle.data.quality.rules import drop_reason
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.in_words import as_text
from lifecycle.data.read.row import BadRow, RawRow, parse

KEPT = "kept:"
HELD_OUT = "held:out"
CONTAMINATED = "dropped:contaminated"


class Judged(NamedTuple):
    """`verdict` is `kept:`, `kept:masked`, `held:out`, `dropped:REASON` or `bad:REASON`; the last two have no text.

    An empty row (a blank line, no text) is `dropped:empty`: nothing is wrong with it.

    contaminated: the evaluation items that it holds, if that is why it was dropped. masked: what was replaced in it.
    """

    text: str | None
    verdict: str
    contaminated: tuple[Found, ...] = ()
    masked: Mapping[str, int] = {}


def judge(raw: RawRow, source: Source) -> Judged:
    """What becomes of a raw row of `source`."""
    try:
        row = parse(raw)
        text = as_text(to_record(row, spec=source.spec, name=source.name, row_id=f"{source.name}:{raw.ordinal}"))
    except BadRow as bad:
        return Judged(None, DROPPED.get(bad.reason, f"{BAD}{bad.reason}"))
    reason = drop_reason(text, source.spec.filters)
    if reason is not None:
        return Judged(None, f"dropped:{reason}")
    if source.evaluation is not None and (found := source.evaluation.find(text)):
        return Judged(None, CONTAMINATED, found)
    masked: Mapping[str, int] = {}
    if source.spec.filters.mask_pii:
        text, masked = mask(text)
    held = source.held_out is not None and source.held_out.holds(text)
    return Judged(text, HELD_OUT if held else f"{KEPT}masked" if masked else KEPT, masked=masked)
