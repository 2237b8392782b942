"""The difficulty of every row of a source: computed once, then read from the cache.

    score_rows(source, "rarity", tokenizer=tokenizer, cache=cache_folder())      (N,) by the row's ordinal

The name of the cached file is a hash of all that the scores depend on: the source's files and their treatment, the kind
of score, the tokenizer where tokens are counted, the parent where the score is its loss.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from lifecycle.data.clean.cached_scan import kept_array
from lifecycle.data.clean.filter_row import HELD_OUT, filter_row
from lifecycle.data.clean.source import Source
from lifecycle.data.clean.walk import walk_rows
from lifecycle.data.curriculum.code_complexity import complexity
from lifecycle.data.curriculum.difficulty import rarity, readability, surprisal_bits
from lifecycle.data.read.files.listing import is_remote
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.row import RawRow, parse
from lifecycle.errors import UserError
from lifecycle.tokenizer.tokenizer import Ids, Tokenizer

By = Literal["field", "length", "rarity", "readability", "code", "loss"]

COUNTING: tuple[By, ...] = ("length", "rarity", "loss")
"""The scores that are computed from tokens."""

VERSION = 1  # of the scores; a change of a formula raises it
PARTS = 16  # of a source, by its rows' ordinals; how many processes share them out does not matter
ROWS_AT_ONCE = 256
ALONE_BYTES = 4 * 2**20  # of files as stored: below this other processes take longer to start than they save
REMOTE_BYTES = 2 * 2**30  # of files as stored: more is not read over the network before a run begins


class DocumentLoss(Protocol):
    """The mean loss a token (nats) of whole documents, bos and eos with them, under one model."""

    @property
    def key(self) -> str:
        """Names the model's weights."""

    def __call__(self, documents: list[Ids]) -> list[float]:
        """One number a document; NaN for one that has no token to predict."""


@dataclass(frozen=True)
class Scores:
    """Of each row of a source, by ordinal: `score` (N,), NaN where there is none, and `size` (N,) in bytes of text.

    Rows that are not trained on (broken, filtered out, repeated, held out) have no score and the size 0.
    """

    score: NDArray[np.float32]
    size: NDArray[np.float32]


@dataclass(frozen=True)
class _Task:
    source: Source
    by: By
    tokenizer: Tokenizer | None
    bits: NDArray[np.float64] | None = None
    parent_loss: DocumentLoss | None = None


_Row = tuple[int, str | None, float]
"""Ordinal, text (None: not trained on), level (NaN: none)."""
_Part = tuple[list[int], list[float], list[float]]
"""Ordinals, scores, sizes."""


def score_rows(
    source: Source, by: By, *, tokenizer: Tokenizer | None, cache: Path, parent_loss: DocumentLoss | None = None
) -> Scores:
    """The scores of all rows of `source`; one process of a run computes them, the others wait and read.

    tokenizer: needed by the scores in `COUNTING` only. Raises UserError for a large source that is not on this machine,
    and for `loss` without a parent.
    """
    if by == "loss" and parent_loss is None:
        raise UserError(
            "data.curriculum.by is 'loss', the loss under the parent, and this run has none: type init_from=RUN, or "
            "choose another score (length, rarity, readability, code, field)"
        )
    far = sum(file.size for file in source.files if is_remote(file.url))
    if far > REMOTE_BYTES:
        raise UserError(
            f"data.curriculum.by={by} reads data.sources.{source.name} first, {far / 1e9:,.0f} GB over the network: "
            "give local copies by path, or leave it out of data.curriculum.sources"
        )
    path = cache / "difficulty" / f"{_key(source, by, tokenizer, parent_loss)}.npy"

    def make() -> NDArray[np.float64]:
        found = _score(_Task(source, by, tokenizer, parent_loss=parent_loss))
        return np.stack([found.score, found.size])

    return Scores(*kept_array(path, make))


def _key(source: Source, by: By, tokenizer: Tokenizer | None, parent_loss: DocumentLoss | None) -> str:
    parts = [VERSION, source.fingerprint, by]
    parts += [tokenizer.sha256] if by in COUNTING and tokenizer else []
    parts += [parent_loss.key] if by == "loss" and parent_loss else []
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _score(task: _Task) -> Scores:
    if task.by == "rarity":
        counts = sum(_each_part(_count_part, task, "counting"))
        task = replace(task, bits=surprisal_bits(counts))
    parts = list(_each_part(_score_part, task, "scoring"))
    ordinals = np.concatenate([np.array(part[0], np.int64) for part in parts])
    order = np.argsort(ordinals)
    score, size = (np.concatenate([np.array(p[i], np.float32) for p in parts])[order] for i in (1, 2))
    return Scores(score, size)


def _each_part(function: Callable[[_Task, int, int], Any], task: _Task, doing: str) -> Iterator[Any]:
    """The function's results for all parts, in any order."""
    processes = min(PARTS, os.cpu_count() or 1)
    small = sum(file.size for file in task.source.files) < ALONE_BYTES
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed} of {task.total}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task(f"{doing} {task.source.name} by {task.by}", total=PARTS)
        if small or processes == 1 or task.by == "loss":  # the parent's device is this process's
            parts = 1 if small else PARTS
            for part in range(parts):
                yield function(task, part, parts)
                bar.advance(shown, PARTS // parts)
            return
        with ProcessPoolExecutor(processes) as pool:
            running = [pool.submit(function, task, part, PARTS) for part in range(PARTS)]
            for done in as_completed(running):
                yield done.result()
                bar.advance(shown)


def _count_part(task: _Task, part: int, parts: int) -> NDArray[np.int64]:
    """(V,) how often each token occurs."""
    assert task.tokenizer is not None
    counts = np.zeros(task.tokenizer.vocab_size, np.int64)
    for chunk in _chunks(_rows(task, part, parts)):
        ids = task.tokenizer.encode_batch([text for _, text, _ in chunk if text is not None])
        counts += np.bincount(np.concatenate([np.zeros(0, np.int32), *ids]), minlength=len(counts))
    return counts


def _score_part(task: _Task, part: int, parts: int) -> _Part:
    ordinals, scores, sizes = list[int](), list[float](), list[float]()
    for chunk in _chunks(_rows(task, part, parts)):
        kept = [(text, level) for _, text, level in chunk if text is not None]
        found = iter(_scores_of(task, [text for text, _ in kept], [level for _, level in kept]))
        for ordinal, text, _ in chunk:
            ordinals.append(ordinal)
            scores.append(float("nan") if text is None else next(found))
            sizes.append(0.0 if text is None else float(len(text.encode("utf-8", "surrogatepass"))))
    return ordinals, scores, sizes


def _scores_of(task: _Task, texts: list[str], levels: list[float]) -> list[float]:
    if task.by == "field":
        return levels
    if task.by == "readability":
        return list(map(readability, texts))
    if task.by == "code":
        return list(map(complexity, texts))
    assert task.tokenizer is not None
    if task.by == "length":
        return [float(len(ids)) for ids in task.tokenizer.encode_batch(texts)]
    if task.by == "rarity":
        assert task.bits is not None
        return [rarity(ids, task.bits) for ids in task.tokenizer.encode_batch(texts)]
    assert task.parent_loss is not None
    return task.parent_loss(task.tokenizer.documents(texts))


def _chunks(found: Iterator[_Row]) -> Iterator[list[_Row]]:
    while chunk := list(islice(found, ROWS_AT_ONCE)):
        yield chunk


def _rows(task: _Task, part: int, parts: int) -> Iterator[_Row]:
    """Every row of a part, also those that are not trained on."""
    leaves_out = task.source.leaves_out()
    read_level = partial(_level, source=task.source) if task.by == "field" else lambda raw: float("nan")
    for raw in walk_rows(task.source, wanted=lambda row: row % parts == part):
        filtered = filter_row(raw, task.source)
        text = filtered.text
        if text is None or filtered.verdict == HELD_OUT or leaves_out(raw.ordinal):
            yield raw.ordinal, None, float("nan")
        else:
            yield raw.ordinal, text, read_level(raw)


def _level(raw: RawRow, source: Source) -> float:
    level = to_record(parse(raw), spec=source.spec, name=source.name, row_id="").level
    return float("nan") if level is None else level
