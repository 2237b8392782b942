"""The folder for what can be derived again: tokenizers, counts, scores, converted checkpoints."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lifecycle.errors import UserError


def cache_folder() -> Path:
    """Where derived data is kept between runs: $LIFECYCLE_CACHE, or the user's cache folder.

    Errors: `UserError` for a user without a home.
    """
    base = os.environ.get("LIFECYCLE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lifecycle")
    try:
        return Path(base).expanduser()
    except RuntimeError as error:  # neither $HOME nor an entry in passwd, as in some containers
        raise UserError(
            f"the cache folder {base} is in the home folder, and this user has none: set LIFECYCLE_CACHE to a folder "
            "that can be written, or HOME"
        ) from error


def made_cache_folder() -> Path:
    """The same, made. Errors: `UserError` where it cannot be written, as for users whose home is not theirs."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(
            f"the cache folder {folder} cannot be written ({error.strerror or error}): set LIFECYCLE_CACHE to a folder "
            "that can"
        ) from error
