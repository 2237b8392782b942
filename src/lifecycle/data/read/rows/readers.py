"""Rows of a list of files, from any position: JSON, CSV and text (plain or compressed), Parquet and Arrow.

    for raw in rows(files, Position(0, 0, 0), wanted=lambda ordinal: ordinal % 4 == 1):
        row = parse(raw)            # a mapping, or BadRow("bad json")
        position = raw.next         # going on from here gives the rows that follow

Every physical row has an ordinal, broken and empty ones too, so that processes which read different rows of the same
files agree on the numbers. Unwanted rows are split off but never parsed; Parquet row groups without a wanted row
are never read. A plain file and a Parquet file are entered at a position at once; a compressed one, and one in another
encoding than UTF-8, is decoded up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lifecycle.data.read.bytes.damage import Damaged, OnDamage, damaged_row
from lifecycle.data.read.bytes.leading_bytes import HEAD_BYTES, misnamed
from lifecycle.data.read.bytes.stored import Stored, open_stored
from lifecycle.data.read.files.listing import MOST_ROW_BYTES, File
from lifecycle.data.read.files.retrying import Retry
from lifecycle.data.read.row import BadRow, Position, RawRow, Rows, Wanted, parse
from lifecycle.data.read.rows.arrow_rows import arrow_rows
from lifecycle.data.read.rows.csv_rows import csv_rows
from lifecycle.data.read.rows.json_rows import json_rows
from lifecycle.data.read.rows.parquet import parquet_rows
from lifecycle.data.read.rows.text_rows import document_row, line_rows, paragraph_rows

__all__ = ["BadRow", "Opened", "Position", "RawRow", "Wanted", "parse", "rows"]

Opened = Callable[[Stored], None]
Cut = Callable[[File, Stored, Position, Wanted, int], Rows]
CUTS: dict[str, Cut] = {
    "jsonl": json_rows,
    "csv": csv_rows,
    "tsv": csv_rows,
    "parquet": parquet_rows,
    "arrow": arrow_rows,
    "document": document_row,
    "line": line_rows,
    "paragraph": paragraph_rows,
}
"""By a file's kind: a generator of its rows from a position on, which returns the position after the last row; raises
Damaged."""


def rows(
    files: Sequence[File],
    position: Position,
    *,
    wanted: Wanted,
    most_bytes: int = MOST_ROW_BYTES,
    retry: Retry | None = None,
    on_damage: OnDamage | None = "error",
    stop: int | None = None,
    opened: Opened | None = None,
) -> Rows:
    """The rows from `position` to the end of the last file (before file `stop`) whose ordinal is `wanted`, in order.

    A row longer than `most_bytes` comes with the fault "too long" and its first bytes. A file that breaks off, does not
    decompress or is no data at all raises UserError where it breaks, or (`on_damage` is skip) gives one row there, with
    the fault "damaged file". Raises ConnectionError when a file cannot be read after all retries. `opened` gets each
    file that is read. The generator's value is the position at the end: its `row` is the number of rows.
    """
    at = position
    while at.file < (len(files) if stop is None else stop):
        try:
            at = yield from _file_rows(files[at.file], at, wanted, most_bytes, retry, opened)
        except Damaged as damage:
            row = damaged_row(damage, files, damage.at or at, on_damage)
            if wanted(row.ordinal):
                yield row
            at = row.next
    return at


def _file_rows(
    file: File, at: Position, wanted: Wanted, most_bytes: int, retry: Retry | None, opened: Opened | None
) -> Rows:
    """Rows of one file; returns the position that follows its last row."""
    if file.kind == "document" and not wanted(at.row):
        return Position(at.file + 1, 0, at.row + 1)
    with open_stored(file, retry) as raw:
        if opened is not None:
            opened(raw)
        if at.offset == 0 and file.kind != "parquet":  # which is not read from its start, and finds out by itself
            wrong = misnamed(raw.read(HEAD_BYTES), file)
            if wrong:
                raise Damaged(wrong, stored=0)
            raw.seek(0)
        end = yield from CUTS[file.kind](file, raw, at, wanted, most_bytes)
    return Position(at.file + 1, 0, end.row)
