"""The rows of a source, read by its settings: the one function that every pass over them uses.

    walk = walk_rows(source, wanted=lambda row: row % 4 == 1)
    for raw in walk: ...
    walk.end                        # where the row after the last one starts

Rows that are duplicates, held out or filtered are among them: the caller decides about those (`filter_row.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from lifecycle.data.clean.source import Source
from lifecycle.data.read.row import Position, RawRow, Rows, Wanted
from lifecycle.data.read.rows.readers import rows

START = Position(0, 0, 0)


class RowWalk:
    """Rows to loop over; `end`, where the row after the last of them starts, is there after the loop."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.end: Position

    def __iter__(self) -> Iterator[RawRow]:
        self.end = yield from self._rows


def walk_rows(
    source: Source,
    begin: Position = START,
    *,
    wanted: Wanted = lambda row: True,
    stop: int | None = None,
    past_limit: bool = False,
) -> RowWalk:
    """The rows of `source` from `begin` on (before its file `stop`) whose number is `wanted`, up to its `max_rows`:
    nothing behind them is read, unless `past_limit`."""
    most, on_damage = source.spec.max_rows, source.bad_rows.damaged_files
    if most is None or past_limit:
        return RowWalk(rows(source.files, begin, wanted=wanted, on_damage=on_damage, stop=stop))
    stop = begin.file if begin.row >= most else stop  # there is none left
    upto = rows(source.files, begin, wanted=lambda n: n == most - 1 or wanted(n), on_damage=on_damage, stop=stop)
    return RowWalk(_before(most, upto, wanted))


def _before(most: int, found: Rows, wanted: Wanted) -> Rows:
    """The rows of `found` whose number is below `most`; `found` always has the last of these, which is given only where
    it is `wanted`."""
    walk = RowWalk(found)
    for raw in walk:
        if raw.ordinal < most - 1 or wanted(raw.ordinal):
            yield raw
        if raw.ordinal == most - 1:
            return raw.next
    return walk.end
