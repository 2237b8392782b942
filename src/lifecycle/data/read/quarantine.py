"""Bad rows, kept where they can be looked at: `quarantine/<source>.jsonl`, one line a row with file, line and reason.

Several processes append to one file, each row by one write; rows read more than once (for the tokenizer, after a
resume) are listed more than once until `compact`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from lifecycle.data.read.row import RawRow
from lifecycle.system import atomic, owner

SHOWN_CHARACTERS = 200
MOST_BYTES = 16 << 20
"""A source's quarantine stops growing here (some 40,000 rows); the counts of bad rows go on."""


def quarantine(path: Path, raw: RawRow, reason: str, *, most_bytes: int = MOST_BYTES) -> None:
    """Append `raw` to the quarantine at `path`, with the first 200 characters of its content, escaped."""
    append(path, {"file": raw.file, "line": raw.line, "reason": reason, "content": shown(raw.payload)}, most_bytes)


def beginning(raw: RawRow) -> RawRow:
    """The row with only so much of its content as a quarantine shows: for rows that may be found bad later."""
    return raw if isinstance(raw.payload, dict) else raw._replace(payload=raw.payload[: 4 * SHOWN_CHARACTERS])


def append(path: Path, entry: Mapping[str, Any], most_bytes: int = MOST_BYTES) -> None:
    """Append a line to the list at `path`, unless it has grown to `most_bytes`. `entry` has a file and a line."""
    owner.check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(entry) + "\n"  # pure ASCII: readable in any terminal
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.fstat(handle).st_size < most_bytes:
            os.write(handle, line.encode())
    finally:
        os.close(handle)


def first(path: Path, reason: str) -> dict[str, Any] | None:
    """The first row of the quarantine at `path` that was put there for that reason."""
    return next((entry for entry, _ in _entries(path) if entry["reason"] == reason), None)


def compact(path: Path) -> int:
    """Sort the quarantine at `path` by file and line, once each; the number of rows. Not while it is written to."""
    if not path.exists():
        return 0
    entries = {(entry["file"], entry["line"]): line for entry, line in _entries(path)}
    atomic.write(path, b"".join(entries[key] + b"\n" for key in sorted(entries)))
    return len(entries)


def _entries(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Every row in the list at `path`, and its line; a process that was killed may have left half a line."""
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with suppress(orjson.JSONDecodeError):
            yield orjson.loads(line), line


def compact_all(folder: Path) -> None:
    """Compact the quarantine of every source in `folder`, if there is one."""
    for path in sorted(folder.glob("*.jsonl")):
        compact(path)


def shown(payload: bytes | dict[str, object]) -> str:
    """The first characters of a row as its file holds it, whatever is broken in it."""
    if isinstance(payload, dict):
        return repr(payload)[:SHOWN_CHARACTERS]
    return payload[: 4 * SHOWN_CHARACTERS].decode("utf-8", "backslashreplace")[:SHOWN_CHARACTERS]
