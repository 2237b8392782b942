"""Rows of a CSV file (RFC 4180, as Python's csv module reads it): a record is a mapping from the header's names.

The delimiter is what a first line `sep=;` names (it is written for Excel, and no row), else the tab in `.tsv`, else the
commonest of `,`, `;` and tab in the header. A quote that is never closed
costs its own line and no more: what follows is read again as lines of their own.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import deque
from collections.abc import Iterator

from lifecycle.data.read.bytes.byte_blocks import KEPT_BYTES, blocks, lines
from lifecycle.data.read.bytes.damage import Damaged
from lifecycle.data.read.bytes.stored import Stored
from lifecycle.data.read.files.listing import MOST_ROW_BYTES, File
from lifecycle.data.read.row import Position, RawRow, Rows, Wanted
from lifecycle.errors import UserError

DELIMITERS = ",;\t"
FEW = 6
"""Names of columns that an error shows."""
FOR_EXCEL = re.compile(rb'"?sep=([,;\t|])"?\r?', re.IGNORECASE)


def csv_rows(file: File, raw: Stored, at: Position, wanted: Wanted, most_bytes: int) -> Rows:
    """One row a record below the header; a blank line is an empty row, as in other files."""
    csv.field_size_limit(MOST_ROW_BYTES)  # for the whole process; 131,072 by default
    names, delimiter, start = _header(file, raw, most_bytes)
    if at.offset == 0:
        at = at._replace(offset=start.offset, line=start.line)
    feed = _Feed(blocks(file, raw, at.offset), at.offset, most_bytes)
    try:
        while (record := feed.record(delimiter)) is not None:
            fields, fault = record
            begun, row = at.line + 1, at.row
            at = Position(at.file, feed.offset, row + 1, at.line + feed.taken_lines)
            if wanted(row):
                payload, fault = _mapping(names, fields, feed.taken, fault)
                yield RawRow(row, file.url, begun, payload, at, fault=fault)
    except Damaged as damage:
        raise damage.behind(at) from None
    return at


def _header(file: File, raw: Stored, most_bytes: int) -> tuple[list[str], str, Position]:
    """Names of the fields, the delimiter, and where the first record stands."""
    feed = _Feed(blocks(file, raw, 0), 0, most_bytes)
    if named := FOR_EXCEL.fullmatch(feed.peek()):
        feed.record(",")
    delimiter = named[1].decode() if named else _delimiter(file, feed.peek())
    found = feed.record(delimiter)
    names = [name.strip() for name in found[0]] if found else []
    if names and file.columns is not None and not set(names) & set(file.columns):
        many = len(file.columns) > FEW  # those of every format: which is it?
        advice = (
            f"name what a row is, and its columns, such as {file.source}.format=question_answer "
            f"'{file.source}.fields={{question: COLUMN, answer: COLUMN}}'"
            if many
            else f"name them by {file.source}.fields, such as {{{file.columns[0]}: COLUMN}}"
        )
        raise UserError(
            f"{file.source}: {file.url} has the columns {', '.join(names)[:300]}, none of which is read "
            f"({', '.join(file.columns[:FEW])}{', ...' if many else ''}): {advice}; the first line must be a header"
        )
    if twice := [name for name in file.columns or names if names.count(name) > 1]:
        raise UserError(
            f"{file.source}: the header of {file.url} has the name {twice[0]!r} twice: rename one of the columns"
        )
    return names, delimiter, Position(0, feed.offset, 0, feed.taken_lines)


def _delimiter(file: File, header: bytes) -> str:
    return "\t" if file.kind == "tsv" else max(DELIMITERS, key=lambda mark: header.count(mark.encode()))


def _mapping(
    names: list[str], fields: list[str], taken: bytes, fault: str | None
) -> tuple[dict[str, str] | bytes, str | None]:
    """The record by its names, or its text and what is wrong with it."""
    if fault is not None:
        return taken[:KEPT_BYTES], fault
    if not fields:
        return b"", None
    try:
        taken.decode()
    except UnicodeDecodeError:
        return taken[:KEPT_BYTES], "bad utf-8"
    if len(fields) != len(names):
        return taken[:KEPT_BYTES], "other fields than the header"
    return dict(zip(names, fields, strict=True)), None


class _Feed:
    """Gives the lines of a file to the csv module one at a time, and stores the bytes of the last record.

    offset: of the line that follows it. taken: its bytes, the last line end apart; taken_lines: their number.
    """

    def __init__(self, text: Iterator[bytes], offset: int, most_bytes: int) -> None:
        self.offset, self.taken, self.taken_lines = offset, b"", 0
        self._most_bytes = most_bytes
        self._lines = self._one_by_one(text)
        self._again: deque[tuple[bytes, int]] = deque()
        self._given: list[tuple[bytes, int]] = []
        self._wanted_more = False

    def peek(self) -> bytes:
        """The next line, without taking it; empty at the end."""
        if not self._again and (line := next(self._lines, None)) is not None:
            self._again.append(line)
        return self._again[0][0] if self._again else b""

    def record(self, delimiter: str) -> tuple[list[str], str | None] | None:
        """Fields of the next record and what is wrong with it; None at the end."""
        self._given, self._wanted_more = [], False
        if not self.peek() and not self._again:
            return None
        fault: str | None = None
        fields: list[str] = []
        try:
            fields = next(csv.reader(self._supply(), delimiter=delimiter))
        except csv.Error:  # a field beyond the limit, a carriage return inside a line
            fault = "bad csv"
        if self._given[0][1] > self._most_bytes:
            fault = "too long"
        elif self._wanted_more:
            fault = "quote without an end"
        if fault is not None:
            self._again.extendleft(reversed(self._given[1:]))
            self._given = self._given[:1]
        self.taken = b"\n".join(line for line, _ in self._given)
        self.taken_lines = len(self._given)
        self.offset += sum(size + 1 for _, size in self._given)
        return fields, fault

    def _supply(self) -> Iterator[str]:
        """Lines as the csv reader requests them; it requests more than one only inside of quotes."""
        held = 0
        while held <= self._most_bytes and (self.peek() or self._again):
            line, size = self._again.popleft()
            self._given.append((line, size))
            held += size
            yield line.decode("utf-8", "replace") + "\n"
        self._wanted_more = True

    def _one_by_one(self, text: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
        """Every line without its end, and the bytes that it has in the file."""
        start = self.offset == 0
        for payloads, cut in lines(text, self._most_bytes):
            for payload in payloads:
                kept = payload.removeprefix(codecs.BOM_UTF8) if start else payload
                yield kept, len(payload) + cut
                start, cut = False, 0
