"""Rows of a JSON file: one object a line, or the elements of one array, or objects written over several lines.

A file that begins with `[`, or with an object that its first line does not end, is split into values wherever their
brackets end; a value is never held beyond the most bytes of a row, and the file never as a whole.
"""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from lifecycle.data.read.bytes.byte_blocks import KEPT_BYTES, blocks
from lifecycle.data.read.bytes.damage import Damaged
from lifecycle.data.read.bytes.stored import Stored
from lifecycle.data.read.files.listing import File
from lifecycle.data.read.row import BadRow, Position, RawRow, Rows, Wanted, parse
from lifecycle.data.read.rows.text_rows import line_rows
from lifecycle.errors import UserError

ARRAY = re.compile(rb"\[\s*(\{|\]|$)")
BETWEEN = re.compile(rb"(?:\xef\xbb\xbf)?[\s,\[\]]*+")  # what stands between the values of an array, and around it
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\]]', re.DOTALL)
IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
BARE = re.compile(rb'[^\s,\[\]{}"]*+')  # a number, true, false, null, NaN
WRAPPED = re.compile(
    rb'\s*\{\s*(?:"([^"\\]*)"\s*:\s*(?:"[^"\\]*"|[-+.\w]+)\s*,\s*)*"([^"\\]*)"\s*:\s*\[\s*\{',
)
"""An object with a list of objects in it, and plain values before that."""


def json_rows(file: File, raw: Stored, at: Position, wanted: Wanted, most_bytes: int) -> Rows:
    """Rows of one file, whichever of the three forms it has."""
    first = next(blocks(file, raw, 0), b"").removeprefix(codecs.BOM_UTF8)
    by_line = not _is_split_by_brackets(first)
    if at.offset == 0:
        _refuse_wrapped(first, file)
    if by_line:
        return (yield from line_rows(file, raw, at, wanted, most_bytes))
    in_array = first.lstrip().startswith(b"[")
    return (yield from _value_rows(file, raw, at, wanted, most_bytes, in_array))


def _is_split_by_brackets(first: bytes) -> bool:
    text = first.lstrip()
    if not text.startswith(b"{"):
        return ARRAY.match(text) is not None
    line, _, rest = text.partition(b"\n")
    return line.strip() == b"{" or (not line.rstrip().endswith(b"}") and rest[:1] in (b" ", b"\t"))


def _refuse_wrapped(first: bytes, file: File) -> None:
    """Raise UserError for a file of one object whose field holds the rows, as far as its first block tells."""
    found = WRAPPED.match(first)
    if found is None:
        return
    keys = {key.decode("utf-8", "replace") for key in re.findall(rb'"([^"\\]*)"\s*:', found[0])}
    if (value := _first_value(first)) is not None:
        if first[value.end :].strip():
            return
        with contextlib.suppress(BadRow):
            keys |= parse(RawRow(0, file.url, 1, value.payload, Position(0, 0, 0))).keys()
    if file.columns is None or keys.isdisjoint(file.columns):
        field = found[2].decode("utf-8", "replace")
        raise UserError(
            f"{file.source}: {file.url} is one JSON object, whose field {field!r} holds the rows; wanted one object a "
            f"row: take them out, for example with `jq -c '.[\"{field}\"][]' FILE > FILE.jsonl`"
        )


def _first_value(first: bytes) -> _Value | None:
    """None where the block does not hold all of it."""
    try:
        return next(_values(iter([first]), 0, 0, len(first), in_array=False), None)
    except Damaged:
        return None


def _value_rows(file: File, raw: Stored, at: Position, wanted: Wanted, most_bytes: int, in_array: bool) -> Rows:
    row = at.row
    text = blocks(file, raw, at.offset)
    try:
        for value in _values(text, at.offset, at.line, most_bytes, in_array=in_array):
            after = Position(at.file, value.end, row + 1, value.end_line)
            if wanted(row):
                long = value.size > most_bytes
                payload = value.payload[:KEPT_BYTES] if long else value.payload
                yield RawRow(row, file.url, value.line, payload, after, fault="too long" if long else None)
            at, row = after, row + 1
    except Damaged as damage:
        raise damage.behind(at) from None
    return at


class _Value(NamedTuple):
    """line: 1-based, where it begins. end: offset of the byte behind it, which has `end_line` line ends before it."""

    line: int
    payload: bytes
    size: int
    end: int
    end_line: int


def _values(blocks: Iterator[bytes], offset: int, line: int, most_bytes: int, *, in_array: bool) -> Iterator[_Value]:
    """The values of a file from `offset` on, which lies between two of them."""
    value, parts, size, begun, carry, closed, block = _Open(), list[bytes](), 0, line, b"", not in_array, b""
    for fresh in blocks:
        block = carry + fresh
        carry = b"\\" if (len(block) - len(block.rstrip(b"\\"))) % 2 else b""  # it escapes what comes next
        block = block[: len(block) - len(carry)]
        at = 0
        while at < len(block):
            if not value.first:
                between = BETWEEN.match(block, at)
                assert between is not None
                closed = closed or b"]" in between[0]
                line += between[0].count(b"\n")
                at, begun = between.end(), line
                if at == len(block):
                    break
            end = value.end(block, at)
            stop = len(block) if end is None else end
            if size <= most_bytes:
                parts.append(block[at:stop])
            size, line, at = size + stop - at, line + block.count(b"\n", at, stop), stop
            if end is not None:
                yield _Value(begun + 1, b"".join(parts), size, offset + end, line)
                value, parts, size = _Open(), [], 0
        offset += len(block)
    if value.first and value.first not in b'{"':
        yield _Value(begun + 1, b"".join(parts), size, offset, line)
    elif value.first:
        raise Damaged(f"breaks off inside a JSON value that begins on line {begun + 1:,}", stored=offset)
    elif not closed:
        raise Damaged("breaks off: its JSON array has no end", stored=offset)


class _Open:
    """A value whose end is looked for, in one block after the other. first: its first byte; empty before it began."""

    def __init__(self) -> None:
        self.first = b""
        self._depth, self._in_string = 0, False

    def end(self, block: bytes, at: int) -> int | None:
        """Where the value, which stands at `at`, ends; None if not in this block."""
        self.first = self.first or block[at : at + 1]
        if self.first == b"}":  # of no object: a bad row of its own
            return at + 1
        if self.first not in b'{"':
            bare = BARE.match(block, at)
            assert bare is not None
            return bare.end() if bare.end() < len(block) else None
        while at < len(block):
            if self._in_string:
                rest = IN_STRING.match(block, at)
                assert rest is not None
                self._in_string, at = rest.end() == len(block), rest.end() + 1
            elif (token := TOKEN.search(block, at)) is None:
                return None
            else:
                at = token.end()
                self._in_string = token[0] == b'"'
                self._depth += (token[0] in b"{[") - (token[0] in b"}]")
            if not self._depth and not self._in_string:
                return at
        return None
