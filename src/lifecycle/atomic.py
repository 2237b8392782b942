"""Files that are there whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path`, making its folder; a reader never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError:  # a full disk: leave no part of it
        aside.unlink(missing_ok=True)
        raise
    aside.replace(path)
