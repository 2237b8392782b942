"""`stage=prepare`: make the items of every source once, into memory-mapped shards that later runs read
(`data.prepared=RUN`).

    python -m lifecycle stage=prepare data=files data.sources.mine.path='texts/*.jsonl' run=mine
    python -m lifecycle stage=pretrain data=files data.sources.mine.path='texts/*.jsonl' data.prepared=mine

A source is cut into parts by its rows' numbers, whatever the number of processes; each process reads it once for all
the parts that it makes. Parts that are finished are kept when the job is started again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import track

from lifecycle.bounds import Count
from lifecycle.data.clean.bad_rows import BAD, refuse_broken
from lifecycle.data.clean.filter_row import HELD_OUT, KEPT, FilteredRow
from lifecycle.data.clean.held_out import Reach, seed_of
from lifecycle.data.clean.source import Source, text_hash
from lifecycle.data.corpus import Corpus
from lifecycle.data.mixture.weight import Weight
from lifecycle.data.read.begun import listed
from lifecycle.data.read.quarantine import beginning, quarantine
from lifecycle.data.read.row import RawRow
from lifecycle.data.stream.documents import Usable
from lifecycle.data.stream.prepared import SIDES, VERSION
from lifecycle.data.stream.shards import ShardWriter, dtype_of
from lifecycle.data.views import ITEMS, Maker
from lifecycle.errors import UserError
from lifecycle.jobs.rows import usable_rows
from lifecycle.system import atomic, owner

PARTS = 16


@dataclass(frozen=True)
class _Task:
    """The rows of some parts of `source`. apart: all its rows are held out."""

    source: Source
    make: Maker
    folder: Path
    parts: tuple[int, ...]
    apart: bool = False

    def note(self, part: int) -> Path:
        """The file that marks a part as finished, with its counts."""
        return self.folder / f"{'held' if self.apart else 'part'}-{part:02d}.json"


def prepare(data: Corpus, folder: Path, processes: Count) -> dict[str, Any]:
    """Write the shards of every source below `folder/prepared`; print and return what they hold, by source and side."""
    with atomic.publish_folder(folder / "tokenizer", replace=True) as aside:
        data.tokenizer.save(aside)
    for other in (folder / "prepared").glob("*"):  # of a start with other sources, which would never be finished
        if other.name not in {source.name for source in data.sources}:
            owner.check(other)
            shutil.rmtree(other)
    held = {s.name: apart for s in data.sources if (apart := data.held_apart(s.name)) is not None}
    readers = min(max(1, processes), PARTS)
    tasks = [
        _Task(source, data.maker(source), folder / "prepared" / source.name, tuple(range(first, PARTS, readers)), apart)
        for sources, apart in ((data.sources, False), (held.values(), True))
        for source in sources
        for first in range(readers)
    ]
    made: dict[tuple[str, bool], list[dict[str, Any]]] = {(task.source.name, task.apart): [] for task in tasks}
    with ProcessPoolExecutor(readers) as pool:
        running = {pool.submit(_write_parts, task): task for task in tasks}
        try:
            for done in track(as_completed(running), "tokenising", total=len(running)):
                made[running[done].source.name, running[done].apart] += done.result()
        finally:  # what ends one part ends the job, before others are begun
            pool.shutdown(cancel_futures=True)
    metas = {
        source.name: _finish(
            source,
            folder,
            data.maker(source),
            made[source.name, False],
            held.get(source.name),
            made.get((source.name, True)),
        )
        for source in data.sources
    }
    print(said(metas, folder, ITEMS[data.make.view]))
    return metas


def said(metas: dict[str, Any], folder: Path, items: str) -> str:
    """What the shards hold, a line a source, and how they are read; items: what those of the view are called."""
    lines = []
    for name, sides in metas.items():
        amounts = [f"{sides[side]['documents']:,} {items}, {sides[side]['tokens']:,} tokens" for side in SIDES]
        left = _left_out(sides["training"]["counts"])
        lines.append(f"{name}: {amounts[0]}; held out: {amounts[1]}" + (f"; left out: {left}" if left else ""))
    return "\n".join([*lines, f"A run reads them with data.prepared={folder}"])


def _left_out(counts: Mapping[str, int]) -> str:
    """Rows by the reason for which they are not in the shards."""
    gone = {verdict.partition(":")[2]: rows for verdict, rows in sorted(counts.items()) if not verdict.startswith(KEPT)}
    return ", ".join(f"{reason} {rows:,}" for reason, rows in gone.items() if rows)


def _write_parts(task: _Task) -> list[dict[str, Any]]:
    """Tokenise the rows of some parts; those that are finished are recognised by their notes and not made again."""
    key = f"{task.source.fingerprint} {task.make.tokenizer.sha256}"
    key += "" if task.make.key == "text" else f" {task.make.key}"
    notes = {part: json.loads(task.note(part).read_text()) for part in task.parts if task.note(part).exists()}
    finished = {part: note for part, note in notes.items() if note["key"] == key}
    missing = [part for part in task.parts if part not in finished]
    counts = {part: Counter[str]() for part in missing}
    sides = SIDES[1:] if task.apart else SIDES if task.source.held_out else SIDES[:1]
    refuse = {part: partial(_refuse, task.source, counts[part]) for part in missing}
    writers = {
        part: {side: ShardWriter(task.folder / side, part, task.make, refuse[part]) for side in sides}
        for part in missing
    }
    reach, seed = Reach(task.source), seed_of(task.source)
    for raw, side, filtered in _filtered(task, counts) if missing else ():
        place = (text_hash(filtered.text or "", seed), reach(raw)) if side == "validation" else None
        writers[raw.ordinal % PARTS][side].add(Usable(filtered, beginning(raw)), place)
    for part in missing:
        made = {side: writer.close() for side, writer in writers[part].items()}
        finished[part] = {"key": key, "counts": dict(counts[part]), **made}
        atomic.write(task.note(part), json.dumps(finished[part]))
    return [finished[part] for part in task.parts]


def _refuse(source: Source, counts: Counter[str], row: Usable, reason: str) -> None:
    """A row that the view makes no item of is a bad one."""
    if row.filtered.verdict != HELD_OUT:
        counts.update({row.filtered.verdict: -1, f"{BAD}{reason}": 1})
    if source.quarantine is not None:
        quarantine(source.quarantine, row.raw, reason)


def _filtered(task: _Task, counts: dict[int, Counter[str]]) -> Iterator[tuple[RawRow, str, FilteredRow]]:
    """Usable rows of the parts in `counts`, which are counted there, with their sides."""

    def count(row: RawRow, verdict: str) -> None:
        if verdict != HELD_OUT:
            counts[row.ordinal % PARTS][verdict] += 1

    for raw, filtered in usable_rows(task.source, count, wanted=lambda row: row % PARTS in counts):
        held = filtered.verdict == HELD_OUT
        yield raw, ("validation" if held or task.apart else "training"), filtered


def _finish(
    source: Source,
    folder: Path,
    make: Maker,
    parts: list[dict[str, Any]],
    held: Source | None,
    held_parts: list[dict[str, Any]] | None,
) -> dict[str, Any]:
    """Write each side's meta.json, which says that it is whole, and what it was made from."""
    counts: Counter[str] = Counter(source.left_out_counts)
    for part in parts:
        counts.update(part["counts"])
    _refuse_useless(source, parts, counts)
    if held is not None and held_parts is not None:
        theirs = sum((Counter(part["counts"]) for part in held_parts), Counter[str]())
        refuse_broken(held, theirs, before=theirs.total(), at_end=True)
    made = {
        "training": (source, parts),
        "validation": (held or source, held_parts or (parts if source.held_out else [])),
    }
    named = source.spec.validation if held is not None else None
    metas = {}
    for side, (origin, written) in made.items():
        metas[side] = {**_origin(origin, make), **_contents(side, written), "counts": dict(counts), "named": named}
        atomic.write(folder / "prepared" / source.name / side / "meta.json", json.dumps(metas[side], indent=1))
    return metas


def _refuse_useless(source: Source, parts: list[dict[str, Any]], counts: Counter[str]) -> None:
    """Raise UserError where too much of the source is broken, or nothing of it is left to train on."""
    share = sum(part["validation"]["documents"] for part in parts) if source.held_out else 0
    refuse_broken(source, {**counts, HELD_OUT: share}, before=counts.total() + share, at_end=True)
    if Weight.of(source.spec.weight, source.name).trained and not sum(part["training"]["documents"] for part in parts):
        raise UserError(
            f"data.sources.{source.name} has no document to train on in {len(source.files)} "
            f"file{'s' * (len(source.files) != 1)} ({_left_out(counts) or 'no rows at all'}): check path, format, "
            "fields and filters"
        )


def _origin(source: Source, make: Maker) -> dict[str, Any]:
    """What the shards of a side were made from: files, their treatment, tokenizer and view."""
    return {
        "version": VERSION,
        "dtype": dtype_of(make),
        "fingerprint": source.fingerprint,
        "treatment": source.treatment,
        "form": {"format": source.spec.format, "fields": source.spec.fields},
        "evaluation": source.evaluation.key if source.evaluation else None,
        "files": listed(source.files),
        "tokenizer": make.tokenizer.sha256,
        "view": make.key,
    }


def _contents(side: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What its shards hold."""
    return {
        "parts": [f"{part:02d}" for part in range(PARTS)] if parts else [],
        "documents": sum(part[side]["documents"] for part in parts),
        "tokens": sum(part[side]["tokens"] for part in parts),
    }
