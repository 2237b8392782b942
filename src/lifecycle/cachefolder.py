"""The folder for what can be derived again: tokenizers, counts, scores, converted checkpoints."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where derived data is kept between runs: $LIFECYCLE_CACHE, or the user's cache folder."""
    base = os.environ.get("LIFECYCLE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lifecycle")
    return Path(base).expanduser()
