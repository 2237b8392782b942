"""`stage=prepare`: tokenise every source once into memory-mapped shards that later runs read (`data.prepared=RUN`).

    python -m lifecycle stage=prepare data=files data.sources.mine.path='texts/*.jsonl' run=mine
    python -m lifecycle stage=pretrain data=files data.sources.mine.path='texts/*.jsonl' data.prepared=mine

A source is cut into parts by its rows' numbers, whatever the number of processes; a part that is finished is kept when
the job is started again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from lifecycle import atomic
from lifecycle.bounds import Count
from lifecycle.data import decontamination
from lifecycle.data.broken import BAD, refuse_broken
from lifecycle.data.judge import HELD_OUT, judge
from lifecycle.data.module import DataModule
from lifecycle.data.quarantine import quarantine
from lifecycle.data.raw import ENCODE_AT_ONCE
from lifecycle.data.readers import Position, rows
from lifecycle.data.source import Source, among
from lifecycle.data.tokenizer import Tokenizer

PARTS = 16
SIDES = ("training", "validation")


@dataclass(frozen=True)
class _Task:
    source: Source
    tokenizer: Tokenizer
    folder: Path
    part: int


def prepare(data: DataModule, folder: Path, processes: Count) -> dict[str, Any]:
    """Write the shards of every source below `folder/prepared` and return their counts."""
    data.tokenizer.save(folder / "tokenizer")
    tasks = [
        _Task(source, data.tokenizer, folder / "prepared" / source.name, part)
        for source in data.sources
        for part in range(PARTS)
    ]
    made: dict[str, list[dict[str, Any]]] = {source.name: [] for source in data.sources}
    with ProcessPoolExecutor(max(1, processes)) as pool:
        running = [pool.submit(_write_part, task) for task in tasks]
        for done in track(as_completed(running), "tokenising", total=len(running)):
            name, counts = done.result()
            made[name].append(counts)
    return {source.name: _finish(source, folder, data.tokenizer, made[source.name]) for source in data.sources}


def _write_part(task: _Task) -> tuple[str, dict[str, Any]]:
    """Tokenise the rows of one part; a finished part is recognised by its note and not made again."""
    note = task.folder / f"part-{task.part:02d}.json"
    key = f"{task.source.fingerprint} {task.tokenizer.sha256}"
    if note.exists() and (old := json.loads(note.read_text()))["key"] == key:
        return task.source.name, old
    counts: Counter[str] = Counter()
    writers = {side: _Writer(task.folder / side, task.part, task.tokenizer) for side in SIDES}
    for side, text in _texts(task, counts):
        writers[side].add(text)
    made = {side: writer.close() for side, writer in writers.items()}
    result = {"key": key, "counts": dict(counts), **made}
    atomic.write(note, json.dumps(result))
    return task.source.name, result


def _texts(task: _Task, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    source = task.source
    leaves_out = source.leaves_out()
    seen: Counter[str] = Counter()
    limit = source.spec.max_rows
    chosen = among(source.rows) if source.rows is not None else lambda row: True
    for raw in rows(
        source.files,
        Position(0, 0, 0),
        wanted=lambda row: row % PARTS == task.part and not leaves_out(row) and chosen(row),
        on_damage=source.bad_rows.damaged_files,
    ):
        if limit is not None and raw.ordinal >= limit:
            return
        text, verdict, contaminated, _ = judge(raw, source)
        seen[verdict] += 1
        if verdict.startswith(BAD):
            if source.quarantine is not None:
                quarantine(source.quarantine, raw, verdict.removeprefix(BAD))
            refuse_broken(source, seen, before=raw.ordinal, at_end=False)
        if contaminated and source.contaminated is not None:
            decontamination.record(source.contaminated, raw, contaminated)
        held = verdict == HELD_OUT
        if not held:
            counts[verdict] += 1
        if text is not None:
            yield ("validation" if held else "training"), text


class _Writer:
    """Appends tokenised documents to one part of one side."""

    def __init__(self, folder: Path, part: int, tokenizer: Tokenizer) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{part:02d}"
        self._dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._tokenizer = tokenizer
        self._file = open(self._path.with_suffix(".tokens"), "wb")
        self._waiting: list[str] = []
        self._lengths: list[int] = []

    def add(self, text: str) -> None:
        self._waiting.append(text)
        if len(self._waiting) == ENCODE_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        documents: list[NDArray[np.int32]] = list(self._tokenizer.documents(self._waiting))
        self._waiting.clear()
        for ids in documents:
            self._file.write(ids.astype(self._dtype).tobytes())
            self._lengths.append(len(ids))

    def close(self) -> dict[str, int]:
        if self._waiting:
            self._flush()
        self._file.close()
        np.save(self._path.with_suffix(".ends.npy"), np.cumsum(self._lengths, dtype=np.int64))
        return {"documents": len(self._lengths), "tokens": sum(self._lengths)}


def _finish(source: Source, folder: Path, tokenizer: Tokenizer, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Write each side's meta.json, which says that it is whole."""
    counts: Counter[str] = Counter(source.left_out_counts)
    for part in parts:
        counts.update(part["counts"])
    held = sum(part["validation"]["documents"] for part in parts)
    refuse_broken(source, {**counts, HELD_OUT: held}, before=counts.total() + held, at_end=True)
    metas = {}
    for side in SIDES:
        metas[side] = {
            "parts": [f"{part:02d}" for part in range(PARTS)],
            "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
            "documents": sum(part[side]["documents"] for part in parts),
            "tokens": sum(part[side]["tokens"] for part in parts),
            "counts": dict(counts),
            "fingerprint": source.fingerprint,
            "tokenizer": tokenizer.sha256,
        }
        atomic.write(folder / "prepared" / source.name / side / "meta.json", json.dumps(metas[side], indent=1))
    return metas
