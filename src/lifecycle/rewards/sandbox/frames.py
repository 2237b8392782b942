"""Messages between a pool and its workers: four bytes with the length, then JSON.

JSON in ASCII holds every text of Python, half a surrogate pair too, and reading it runs no code of the sender.
"""

from __future__ import annotations

import json
import os
from typing import Any

HEAD = 4
LARGEST = 64 * 2**20
"""Bytes of a message; nothing of ours is so large, and a head that says more is no head."""


def packed(message: Any) -> bytes:
    """The bytes of a message."""
    body = json.dumps(message).encode("ascii")
    return len(body).to_bytes(HEAD, "little") + body


def size(head: bytes) -> int:
    """Bytes of the message behind `head`. Raises ValueError for what no sender of ours writes."""
    found = int.from_bytes(head, "little")
    if found > LARGEST:
        raise ValueError(f"a message of {found:,} bytes")
    return found


def write(fd: int, message: Any) -> None:
    """Send a message, whole."""
    left = memoryview(packed(message))
    while left:
        left = left[os.write(fd, left) :]


def read(fd: int) -> Any:
    """The next message. Raises EOFError where the other side is gone."""
    return json.loads(_exactly(fd, size(_exactly(fd, HEAD))))


def _exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
