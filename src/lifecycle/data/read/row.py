"""A row as a file holds it, the position of the next one, and its parsing into a mapping."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias

import orjson

from lifecycle.system.unicode import well_formed

Wanted = Callable[[int], bool]


class BadRow(Exception):
    """A row that cannot be used; `reason` is short and stable, because reasons are counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Position(NamedTuple):
    """Where the next row starts; plain integers, so that it is stored in a checkpoint.

    file: index in the files. offset: byte in the (decompressed) file; in Parquet the number of the row in the file.
    row: ordinal of the next row within the pass over all files. line: physical lines of the file that lie before.
    """

    file: int
    offset: int
    row: int
    line: int = 0


class RawRow(NamedTuple):
    """A row before parsing. line: 1-based in its file. next: where the row after it starts. fault: why it is bad.

    share: of its file's rows, the share up to and with this one, where the file stores its number of rows.
    """

    ordinal: int
    file: str
    line: int
    payload: bytes | dict[str, Any]
    next: Position
    is_text: bool = False
    fault: str | None = None
    share: float | None = None


Rows: TypeAlias = Generator[RawRow, None, Position]
"""Raw rows, and at the end (the generator's value) the position that follows the last of them."""


def parse(raw: RawRow) -> dict[str, Any]:
    """The row as a mapping (a row of plain text is `{"text": ...}`). Raises BadRow."""
    if raw.fault is not None:
        raise BadRow(raw.fault)
    payload = raw.payload
    if isinstance(payload, dict):
        return payload
    if not payload or payload.isspace():
        raise BadRow("empty")
    if raw.is_text:
        return {"text": _decode(payload)}
    try:
        row = orjson.loads(payload)
    except orjson.JSONDecodeError:
        row = _lenient(_decode(payload))
    if not isinstance(row, dict):
        raise BadRow("not an object")
    return row


def _lenient(text: str) -> Any:
    """The value by Python's own parser, which accepts what Python, pandas and `datasets` write: NaN, Infinity, and
    single surrogates (which become U+FFFD)."""
    try:
        return _well_formed(json.loads(text))
    except (ValueError, RecursionError):
        raise BadRow("bad json") from None


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list):
        return [_well_formed(one) for one in value]
    if isinstance(value, dict):
        return {well_formed(key): _well_formed(one) for key, one in value.items()}
    return value


def _decode(payload: bytes) -> str:
    if b"\0" in payload:
        raise BadRow("nul bytes")
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise BadRow("bad utf-8") from None
