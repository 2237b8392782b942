"""How many positions one pass over a source gives: what turns `stage.max_epochs` into steps, exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from lifecycle.data.clean.source import Source
from lifecycle.data.read.files.listing import is_remote
from lifecycle.data.stream.documents import RawDocuments
from lifecycle.data.stream.pieces import Exhausted
from lifecycle.errors import UserError
from lifecycle.system import atomic
from lifecycle.tokenizer.tokenizer import Tokenizer

SHOWN_EVERY = 256  # documents between two looks at the progress bar


def count_positions(source: Source, tokenizer: Tokenizer, *, cache: Path, seed: int) -> int:
    """Trained positions of one pass: tokens of every document but its last. Counted once, then read from the cache.

    Raises `UserError` for a source that is not on this machine: a pass over it would be the run itself.
    """
    if any(is_remote(file.url) for file in source.files):
        raise UserError(
            f"stage.max_epochs counts passes over data.sources.{source.name}, which is read over the network: give "
            "stage.max_tokens instead, or tokenise it once with stage=prepare and set data.prepared=RUN"
        )
    note = cache / "counts" / f"{source.fingerprint}-{tokenizer.sha256[:16]}.json"
    if note.exists():
        return int(json.loads(note.read_text())["positions"])
    positions = _count(source, tokenizer, seed)
    atomic.write(note, json.dumps({"source": source.name, "positions": positions}))
    return positions


def _count(source: Source, tokenizer: Tokenizer, seed: int) -> int:
    once = replace(source, spec=replace(source.spec, max_epochs=1))
    documents = RawDocuments.alone(once, tokenizer.documents, seed=seed, buffer=1000, shuffle=False)
    positions = number = 0
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"counting the tokens of {source.name}", total=1.0)
        while True:
            try:
                positions += len(documents.next()) - 1
            except Exhausted:
                return positions
            number += 1
            if number % SHOWN_EVERY == 0:
                bar.update(task, completed=documents.totals()["epochs"])
