"""A parent that is a Hugging Face folder or a GGUF file: the export of a run, or a model from elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.lineage.parent.checkpoint import after_the_at
from lifecycle.lineage.parent.parent import TOKENIZER_FILES, Parent, trained_with
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.model.huggingface import load_pretrained, read_config
from lifecycle.model.huggingface.gguf import gguf_file, tokenizer_gguf
from lifecycle.system.atomic import publish_folder, told_in_words
from lifecycle.system.cache import cache_folder


def from_files(place: Path, run: RunFolder | None = None) -> Parent:
    """The parent in a Hugging Face folder, or in a GGUF file. run: whose export it is; None for a model from
    elsewhere."""
    file = gguf_file(place)
    folder = place if file is None else file.parent
    tokenizer = str(folder.resolve()) if any((folder / name).exists() for name in TOKENIZER_FILES) else None
    if tokenizer is None and file is not None:
        tokenizer = _unpacked_tokenizer(file.resolve())
    if run is not None and tokenizer is not None:
        trained_with(run, folder, str(run.path))
    return Parent(
        folder=folder,
        run=run,
        model=read_config(place),
        tokenizer=tokenizer,
        name=str((run.path if run else place).resolve()),
        read=lambda: _read_export(place, run),
    )


def _read_export(place: Path, run: RunFolder | None) -> dict[str, Tensor]:
    """Its weights, which only a new run reads. Raises UserError where the run that wrote them was started again
    since."""
    status = run.lineage().get("status") if run else None
    if run is None or status in (None, "finished"):
        return load_pretrained(place)[1]
    raise UserError(
        f"init_from: run {run.path} was started again and is {status}, so {place} is from before: let it finish "
        f"first, take one of its checkpoints ({after_the_at(run.path)}), or type init_from={place} for the older model"
    )


def _unpacked_tokenizer(file: Path) -> str | None:
    """The tokenizer of a GGUF file as a folder in the cache; None where the file has none."""
    about = file.stat()
    key = hashlib.sha256(f"{file}:{about.st_size}:{about.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / "gguf" / key
    if not folder.is_dir():
        tokenizer = tokenizer_gguf(file)
        if tokenizer is None:
            return None
        with publish_folder(folder, replace=False) as aside:
            with told_in_words(folder):
                tokenizer.save_pretrained(aside)
    return str(folder)
