"""Small repositories of the Hugging Face hub as folders: fetched once, and without a network read from the hub's cache.

    folder = fetched("owner/name", TOKENIZER)                     # in the hub's own cache; its name is the commit
    folder = fetched("owner/name", ["*.safetensors"], commit)

Everything else reads these folders, so that nothing else uses the network, or waits for one that is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lifecycle.errors import UserError

TOKENIZER = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "vocab*",
    "merges*",
)
"""What a tokenizer is read from."""


def fetched(name: str, patterns: Sequence[str], commit: str | None = None) -> Path:
    """The folder with the files that match `patterns`; commit None: the newest. Errors: `UserError` with the hub's
    reason alone, since the caller knows the key that named the repository."""
    from huggingface_hub import snapshot_download  # it takes a second
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*patterns], revision=commit))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(reason(error)) from error


def reason(error: Exception) -> str:
    """The message of an error in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
