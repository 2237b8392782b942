"""Rows of plain text: the whole file, its lines, or its paragraphs."""

from __future__ import annotations

import codecs

from lifecycle.data.read.bytes.byte_blocks import KEPT_BYTES, blocks, lines
from lifecycle.data.read.bytes.damage import Damaged
from lifecycle.data.read.bytes.stored import Stored
from lifecycle.data.read.files.listing import File
from lifecycle.data.read.row import Position, RawRow, Rows, Wanted


def line_rows(file: File, raw: Stored, at: Position, wanted: Wanted, most_bytes: int) -> Rows:
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
                            payload = payload.removeprefix(codecs.BOM_UTF8)
                        payload = payload[:-1] if payload.endswith(b"\r") else payload
                        yield RawRow(row - 1, url, line, payload, after, is_text)
                cut_bytes = 0
    except Damaged as damage:
        raise damage.behind(Position(index, offset, row, line)) from None
    return Position(index, offset, row, line)


def paragraph_rows(file: File, raw: Stored, at: Position, wanted: Wanted, most_bytes: int) -> Rows:
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
        raise damage.behind(Position(index, offset, row, line)) from None
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


def document_row(file: File, raw: Stored, at: Position, wanted: Wanted, most_bytes: int) -> Rows:
    """The whole file as one row, which is wanted."""
    after = Position(at.file + 1, 0, at.row + 1)
    parts, size, fault = list[bytes](), 0, None
    for block in blocks(file, raw, 0):
        parts.append(block)
        size += len(block)
        if size > most_bytes:
            fault = "too long"
            break
    payload = b"".join(parts).removeprefix(codecs.BOM_UTF8)
    yield RawRow(at.row, file.url, 1, payload[:KEPT_BYTES] if fault else payload, after, True, fault)
    return after
