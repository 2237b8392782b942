"""A parent from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lifecycle.errors import UserError
from lifecycle.lineage.parent.parent import TOKENIZER_FILES, Parent
from lifecycle.model.huggingface import load_pretrained, read_config
from lifecycle.system.hub_files import TOKENIZER, fetched

SMALL_FILES = (*TOKENIZER, "generation_config.json")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


def from_hub(name: str, asked: str) -> Parent:
    """The parent of a hub id: small files are fetched now, weights (of the same commit) at their first use. asked:
    the key with its value, for messages."""
    folder = _fetched(name, SMALL_FILES, None, asked)
    if not (folder / "config.json").is_file():
        raise UserError(f"{asked}: there is no config.json in this repository, so it is no model for here")
    commit = folder.name
    found = any((folder / file).exists() for file in TOKENIZER_FILES)
    return Parent(
        folder=folder,
        run=None,
        model=read_config(folder),
        tokenizer=str(folder) if found else None,
        name=name,
        commit=commit,
        read=lambda: load_pretrained(_fetched(name, SMALL_FILES + WEIGHT_FILES, commit, asked))[1],
    )


def _fetched(name: str, patterns: Sequence[str], commit: str | None, asked: str) -> Path:
    try:
        return fetched(name, patterns, commit)
    except UserError as error:
        raise UserError(
            f"{asked} is no place here, and was not found on the Hugging Face hub either ({error}). Without "
            "a network, fetch it elsewhere (hf download) and give its folder; a gated one wants `hf auth login`; a run "
            "is named by its folder under outputs/"
        ) from error
