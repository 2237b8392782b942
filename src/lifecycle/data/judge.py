"""What becomes of a row: its text, and the verdict of the format, the filters and the held-out share on it.

The verdict is a function of the row alone, so it is the same when rows are streamed, prepared or scanned.
"""

from __future__ import annotations

from lifecycle.data.filters import drop_reason
from lifecycle.data.formats import as_text, to_record
from lifecycle.data.raw_row import BadRow, RawRow, parse
from lifecycle.data.source import Source

HELD_OUT = "held:out"


def judge(raw: RawRow, source: Source) -> tuple[str | None, str]:
    """The text of a raw row and the verdict on it: `kept:`, `held:out`, `dropped:REASON` or `bad:REASON`.

    A dropped or bad row has no text.
    """
    try:
        row = parse(raw)
        text = as_text(to_record(row, spec=source.spec, name=source.name, row_id=f"{source.name}:{raw.ordinal}"))
    except BadRow as bad:
        return None, f"bad:{bad.reason}"
    reason = drop_reason(text, source.spec.filters)
    if reason is not None:
        return None, f"dropped:{reason}"
    held = source.held_out is not None and source.held_out.holds(text)
    return text, HELD_OUT if held else "kept:"
