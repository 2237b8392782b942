"""A file that is broken as a whole, which is not one bad row: where it breaks off, and how much is missing.

Under `data.bad_rows.damaged_files=error` it ends whatever reads it; under `skip` its rows up to there are read, the
rest is one row with the fault "damaged file", and stderr says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lifecycle.data.read.files.listing import File
from lifecycle.data.read.row import Position, RawRow
from lifecycle.errors import UserError
from lifecycle.system.say_once import say_once

DAMAGED = "damaged file"
SKIP = "data.bad_rows.damaged_files=skip"
OnDamage = Literal["error", "skip"]


class Damaged(Exception):
    """A file cannot be read on; `reason` is the predicate of a sentence about it.

    stored: bytes of the file, as stored, that were read up to there. at: the position of the row that cannot be read.
    after: of the next one that can; None: none can.
    """

    def __init__(self, reason: str, *, stored: int, at: Position | None = None, after: Position | None = None) -> None:
        super().__init__(reason)
        self.reason, self.stored, self.at, self.after = reason, stored, at, after

    def behind(self, at: Position) -> Damaged:
        """The same damage, for the row at position `at`."""
        return Damaged(self.reason, stored=self.stored, at=at)


def damaged_row(damage: Damaged, files: Sequence[File], at: Position, on_damage: OnDamage | None) -> RawRow:
    """The row that stands for what cannot be read in file `at.file`; raises UserError unless it is to be skipped.

    on_damage: None where damage must not be skipped.
    """
    file = files[at.file]
    fault = f"{file.source}: {file.url} {damage.reason}{_place(damage, at, file)}{_missing(damage, at, files)}"
    if on_damage == "error":
        raise UserError(f"{fault}. Fetch or make it again, or leave it out; {SKIP} goes on without what cannot be read")
    if on_damage is None:
        raise UserError(f"{fault}. Fetch or make it again")
    say_once(f"warning: {fault}; it is passed over ({SKIP})\n")
    after = damage.after or Position(at.file + 1, 0, at.row + 1)
    return RawRow(at.row, file.url, at.line + 1, fault.encode(), after, fault=DAMAGED)


def _place(damage: Damaged, at: Position, file: File) -> str:
    if not at.line:
        return ""
    unit = "row" if file.kind in ("parquet", "arrow") else "line"
    stored = f" (byte {damage.stored:,} of {max(file.size, damage.stored):,} stored)" if damage.stored else ""
    return f", after {unit} {at.line:,}{stored}"


def _missing(damage: Damaged, at: Position, files: Sequence[File]) -> str:
    """How much is lost, estimated from the bytes that were not read, or from the sizes of the other files."""
    file = files[at.file]
    if damage.after is not None:
        return f"; {_rows(damage.after.row - at.row)} are lost"
    if not at.line or not damage.stored:
        return "; nothing of it can be read"
    lost = file.size - damage.stored
    if lost > 0:
        return f"; about {_rows(lost * at.line / damage.stored)} behind it are lost"
    alike = [one for one in files if one.kind == file.kind and one.compression == file.compression]
    others = [one.size for one in alike if one.url != file.url]
    usual = sum(others) / max(len(others), 1)
    if usual > file.size:
        missing = _rows((usual - file.size) * at.line / damage.stored)
        return f"; the others are {usual:,.0f} bytes on average, so about {missing} are missing"
    return "; how much is missing is not known"


def _rows(number: float) -> str:
    return f"{max(1, round(number)):,} rows"
