"""The rows of a source that a job can use, one after the other as the files have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from lifecycle.data.clean import contamination_report
from lifecycle.data.clean.bad_rows import BAD, refuse_broken
from lifecycle.data.clean.filter_row import FilteredRow, filter_row
from lifecycle.data.clean.source import Source, among
from lifecycle.data.clean.walk import walk_rows
from lifecycle.data.read.quarantine import quarantine
from lifecycle.data.read.row import RawRow, Wanted


def usable_rows(
    source: Source, count: Callable[[RawRow, str], None], *, wanted: Wanted = lambda row: True
) -> Iterator[tuple[RawRow, FilteredRow]]:
    """Rows that pass the filters, held-out ones among them; broken and contaminated ones are listed.

    count: is told the verdict on every row. wanted: numbers of the rows that are read. Raises UserError where too many
    are broken.
    """
    leaves_out = source.leaves_out()
    seen: Counter[str] = Counter()
    chosen = among(source.rows) if source.rows is not None else lambda row: True
    for raw in walk_rows(source, wanted=lambda row: wanted(row) and not leaves_out(row) and chosen(row)):
        filtered = filter_row(raw, source)
        verdict, contaminated = filtered.verdict, filtered.contaminated
        seen[verdict] += 1
        if verdict.startswith(BAD):
            if source.quarantine is not None:
                quarantine(source.quarantine, raw, verdict.removeprefix(BAD))
            refuse_broken(source, seen, before=raw.ordinal, at_end=False)
        if contaminated and source.contaminated is not None:
            contamination_report.record(source.contaminated, raw, contaminated)
        count(raw, verdict)
        if filtered.text is not None:
            yield raw, filtered
