"""Rows of a list of files, from any position: JSON Lines and text (plain, gz, zst) and Parquet.

    for raw in rows(files, Position(0, 0, 0), wanted=lambda ordinal: ordinal % 4 == 1):
        row = parse(raw)            # a mapping, or BadRow("bad json")
        position = raw.next         # going on from here gives the rows that follow

Every physical row has an ordinal, broken and empty ones too, so that processes which read different rows of the same
files agree on the numbers. Rows nobody wants are split off but never parsed; Parquet row groups without a wanted row
are never read. A plain file and a Parquet file are entered at a position at once; a compressed one is decompressed up
to it.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence

from lifecycle.data.blocks import KEPT_BYTES, Damaged, blocks, lines
from lifecycle.data.files import MOST_ROW_BYTES, File, is_remote
from lifecycle.data.parquet import parquet_rows
from lifecycle.data.raw_row import BadRow, Position, RawRow, Rows, Wanted, parse
from lifecycle.data.retrying import Retry, RetryingFile, open_retrying
from lifecycle.errors import UserError

__all__ = ["BadRow", "Position", "RawRow", "Wanted", "parse", "rows"]


def rows(
    files: Sequence[File],
    position: Position,
    *,
    wanted: Wanted,
    most_bytes: int = MOST_ROW_BYTES,
    retry: Retry | None = None,
) -> Rows:
    """The rows from `position` to the end of the last file whose ordinal is `wanted`, in order.

    A row longer than `most_bytes` comes with the fault "too long" and its first bytes; a file that breaks off or does
    not decompress gives one row with the fault "damaged file" where it broke. Raises ConnectionError when a file cannot
    be read after all retries. The generator's value is the position at the end: its `row` is the number of rows.
    """
    for index in range(position.file, len(files)):
        at = position if index == position.file else Position(index, 0, position.row)
        position = yield from _file_rows(files[index], at, wanted, most_bytes, retry)
    return position


def _file_rows(file: File, at: Position, wanted: Wanted, most_bytes: int, retry: Retry | None) -> Rows:
    """Rows of one file; returns the position that follows its last row."""
    if file.kind == "document" and not wanted(at.row):
        return Position(at.file + 1, 0, at.row + 1)
    with open_retrying(file.url, size=file.size or None if is_remote(file.url) else None, retry=retry) as raw:
        if file.kind == "parquet":
            return (yield from parquet_rows(file, raw, at, wanted))
        if file.kind == "document":
            return (yield from _document_row(file, raw, at, most_bytes))
        cut = _paragraph_rows if file.kind == "paragraph" else _line_rows
        try:
            at = yield from cut(file, raw, at, wanted, most_bytes)
        except Damaged as damage:
            at = damage.args[1]
            after = Position(at.file + 1, 0, at.row + 1)
            if wanted(at.row):
                yield RawRow(at.row, file.url, at.line + 1, str(damage.args[0]).encode(), after, fault="damaged file")
            return after
    return Position(at.file + 1, 0, at.row)


def _line_rows(file: File, raw: RetryingFile, at: Position, wanted: Wanted, most_bytes: int) -> Rows:
    """One row a line; a blank line is a row (and an empty one), so that lines and ordinals keep step."""
    index, offset, row, line = at
    url, is_text = file.url, file.kind == "line"
    try:
        for payloads, cut_bytes in lines(blocks(file, raw, offset), most_bytes):
            for payload in payloads:
                start = offset
                offset += len(payload) + 1 + cut_bytes
                row += 1
                line += 1
                if wanted(row - 1):
                    after = Position(index, offset, row, line)
                    if len(payload) + cut_bytes > most_bytes:
                        yield RawRow(row - 1, url, line, payload[:KEPT_BYTES], after, is_text, "too long")
                    else:
                        if start == 0:
                            payload = _first_line(payload, url)
                        payload = payload[:-1] if payload.endswith(b"\r") else payload
                        yield RawRow(row - 1, url, line, payload, after, is_text)
                cut_bytes = 0
    except Damaged as damage:
        raise Damaged(damage.args[0], Position(index, offset, row, line)) from None
    return Position(index, offset, row, line)


def _paragraph_rows(file: File, raw: RetryingFile, at: Position, wanted: Wanted, most_bytes: int) -> Rows:
    """One row for each run of lines between blank lines; a row begins at its first line that is not blank."""
    index, offset, row, line = at
    begin, parts, size = line, list[bytes](), 0
    try:
        for payloads, cut_bytes in lines(blocks(file, raw, offset), most_bytes):
            for payload in payloads:
                stripped = payload.removeprefix(codecs.BOM_UTF8) if offset == 0 else payload
                if stripped.strip():
                    begin = begin if parts else line
                    if size <= most_bytes:
                        parts.append(stripped)
                    size += len(payload) + cut_bytes + 1
                elif parts:
                    if wanted(row):
                        yield _paragraph(
                            file, row, begin, parts, size, most_bytes, Position(index, offset, row + 1, line)
                        )
                    row, parts, size = row + 1, [], 0
                offset += len(payload) + 1 + cut_bytes
                line += 1
                cut_bytes = 0
    except Damaged as damage:
        raise Damaged(damage.args[0], Position(index, offset, row, line)) from None
    if parts:
        if wanted(row):
            yield _paragraph(file, row, begin, parts, size, most_bytes, Position(index, offset, row + 1, line))
        row += 1
    return Position(index, offset, row, line)


def _paragraph(
    file: File, row: int, begin: int, parts: list[bytes], size: int, most_bytes: int, after: Position
) -> RawRow:
    if size > most_bytes:
        return RawRow(row, file.url, begin + 1, b"\n".join(parts)[:KEPT_BYTES], after, True, "too long")
    return RawRow(row, file.url, begin + 1, b"\n".join(part.rstrip(b"\r") for part in parts), after, True)


def _document_row(file: File, raw: RetryingFile, at: Position, most_bytes: int) -> Rows:
    """The whole file as one row."""
    after = Position(at.file + 1, 0, at.row + 1)
    parts, size, fault = list[bytes](), 0, None
    try:
        for block in blocks(file, raw, 0):
            parts.append(block)
            size += len(block)
            if size > most_bytes:
                fault = "too long"
                break
    except Damaged:
        fault = "damaged file"
    payload = b"".join(parts).removeprefix(codecs.BOM_UTF8)
    yield RawRow(at.row, file.url, 1, payload[:KEPT_BYTES] if fault else payload, after, True, fault)
    return after


def _first_line(payload: bytes, url: str) -> bytes:
    payload = payload.removeprefix(codecs.BOM_UTF8)
    if payload.lstrip()[:1] == b"[" and os.path.splitext(url.removesuffix(".gz").removesuffix(".zst"))[1] == ".json":
        raise UserError(
            f"{url} holds one JSON array; wanted JSON Lines, one object a line: convert it, for example with "
            "`jq -c '.[]' FILE.json > FILE.jsonl`"
        )
    return payload
