"""How many positions one pass over a source gives (in the view `prompt`: prompts): what turns `stage.max_epochs` into
steps, exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from lifecycle.batch import Item
from lifecycle.data.clean.source import Source
from lifecycle.data.read.files.listing import is_remote
from lifecycle.data.stream.documents import RawDocuments
from lifecycle.data.stream.packing import Packing
from lifecycle.data.stream.pieces import Exhausted
from lifecycle.data.views import Maker
from lifecycle.errors import UserError
from lifecycle.system import atomic

SHOWN_EVERY = 256  # documents between two looks at the progress bar


def count_positions(source: Source, make: Maker, *, packing: Packing, row_length: int, cache: Path, seed: int) -> int:
    """Positions of one pass: tokens of every sequence but its last, as it is in rows, and the padding of rows that hold
    whole items. Counted once, then read from the cache.

    Raises `UserError` for a source that is not on this machine: a pass over it would be the run itself.
    """
    if any(is_remote(file.url) for file in source.files):
        raise UserError(
            f"stage.max_epochs counts passes over data.sources.{source.name}, which is read over the network: give "
            "stage.max_tokens instead, or tokenise it once with stage=prepare and set data.prepared=RUN"
        )
    form = (
        ""
        if make.view == "text"
        else f"-{make.key}-{packing.long_examples}-{row_length}-{'rows' if packing.pads else 'sizes'}"
    )
    form += "-all" if form and packing.train_on == "all" else ""
    note = cache / "counts" / f"{source.fingerprint}-{make.tokenizer.sha256[:16]}{form}.json"
    if note.exists():
        return int(json.loads(note.read_text())["positions"])
    positions = _count(source, make, packing, row_length, seed)
    atomic.write(note, json.dumps({"source": source.name, "positions": positions}))
    return positions


def _count(source: Source, make: Maker, packing: Packing, row_length: int, seed: int) -> int:
    once = replace(source, spec=replace(source.spec, max_epochs=1))
    documents = RawDocuments.alone(once, make, seed=seed, buffer=1000, shuffle=False)
    sizes: list[int] = []
    positions = number = 0
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"counting the tokens of {source.name}", total=1.0)
        while True:
            try:
                found = sizes_in_rows(documents.next(), packing, row_length)
            except Exhausted:
                return packing.positions(sizes, row_length) if packing.pads else positions
            positions += sum(found)
            sizes += found if packing.pads else []  # of a corpus of text there are too many to remember
            number += 1
            if number % SHOWN_EVERY == 0:
                bar.update(task, completed=documents.totals()["epochs"])


def sizes_in_rows(item: Item, packing: Packing, row_length: int) -> list[int]:
    """Positions of each piece of an item in rows of this length: none, where it is left out."""
    if packing.goes_on(item):
        whole, rest = divmod(item.size, row_length)
        return [row_length] * whole + [rest] * (rest > 0)
    fitting = packing.fit(item, row_length)
    return [] if fitting is None else [fitting.size]
