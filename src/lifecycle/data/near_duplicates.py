"""Near duplicates within and across the sources of a run: the first in order stays, rows that resemble it are left out.

    source -> rows that pass its filters -> word n-grams -> MinHash signatures (kept on disk) -> similar pairs

The order is that of the config's sources, then of their rows. A source's signatures are made once and kept in the
cache with 8 + 4 * permutations bytes a document (520 with 128), and a scan that was cut short goes on where it was; the
pairs of a mixture need about 32 bytes a document of memory. Cost grows linearly with the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lifecycle import atomic
from lifecycle.data.filters import NearRules
from lifecycle.data.judge import judge
from lifecycle.data.minhash import ALGORITHM, Signatures, repeated, signatures, similar_pairs
from lifecycle.data.readers import Position, RawRow
from lifecycle.data.scan import refuse_remote, scan
from lifecycle.data.source import Source
from lifecycle.data.words import shingles
from lifecycle.errors import UserError

VERSION = 1
KEPT_EVERY = 32  # batches between two notes of how far a scan has come
REASON = "near duplicate"
Signed = tuple[NDArray[np.int64], NDArray[np.uint32]]  # row numbers (N,) and their signatures (N, K)


def without_near_duplicates(sources: Sequence[Source], *, cache: Path, processes: int) -> list[Source]:
    """`sources` with the near duplicates left out of those that have the filter. Raises UserError where they differ.

    Sources without the filter are neither cleaned nor compared with.
    """
    wanted = [source for source in sources if source.spec.filters.near_duplicates]
    for source in wanted:
        refuse_remote(source, "filters.near_duplicates")
        if source.spec.filters.near != (first := wanted[0]).spec.filters.near:
            raise UserError(
                f"data.sources.{source.name}.filters.near differs from data.sources.{first.name}.filters.near: sources "
                "are compared with each other, so give all of them the same threshold, ngram and permutations"
            )
    if not wanted:
        return list(sources)
    ordinals, pairs = near_pairs(wanted, wanted[0].spec.filters.near, cache=cache, processes=processes)
    gone = np.array(repeated(pairs), np.int64)
    ends = np.cumsum([len(rows) for rows in ordinals])
    found = {}
    for source, rows, end in zip(wanted, ordinals, ends.tolist(), strict=True):
        here = gone[(gone >= end - len(rows)) & (gone < end)]
        found[source.name] = np.asarray(rows[here - (end - len(rows))], np.int64)
    return [replace(s, left_out={**s.left_out, REASON: found[s.name]}) if s.name in found else s for s in sources]


def near_pairs(
    sources: Sequence[Source], rules: NearRules, *, cache: Path, processes: int
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Row numbers of each source's documents, and similar pairs (P, 2) of numbers among all documents together.

    Documents are numbered through all sources in order. Pairs are as `minhash.similar_pairs` gives them.
    """
    keys = [_key(source, rules) for source in sources]
    signed = [
        _signatures(s, rules, cache / "signatures" / key, processes) for s, key in zip(sources, keys, strict=True)
    ]
    form = hashlib.sha256("|".join([*keys, repr(rules.threshold)]).encode()).hexdigest()[:32]
    path = cache / "near_duplicates" / f"{form}.npy"
    with _alone(path):
        if not path.exists():
            pairs = similar_pairs(Signatures([one[1] for one in signed]), rules.threshold)
            with open(aside := path.with_suffix(".part"), "wb") as file:
                np.save(file, pairs)
            aside.replace(path)
    return [one[0] for one in signed], np.load(path)


def _key(source: Source, rules: NearRules) -> str:
    """What a source's signatures depend on; the threshold is none of it."""
    filters = replace(source.spec.filters, near_duplicates=False, near=NearRules())
    plain = replace(source, spec=replace(source.spec, filters=filters))
    form = (VERSION, ALGORITHM, plain.fingerprint, rules.ngram, rules.permutations)
    return hashlib.sha256(repr(form).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Sign:
    """The work of one process on some rows: numbers and signatures of those that the filters keep."""

    ngram: int
    permutations: int

    def __call__(self, source: Source, raws: list[RawRow]) -> Signed:
        ordinals, sets = list[int](), list[NDArray[np.uint64]]()
        for raw in raws:
            text = judge(raw, source).text
            if text is not None and len(one := shingles(text, self.ngram)):
                ordinals.append(raw.ordinal)
                sets.append(one)
        return np.array(ordinals, np.int64), signatures(sets, self.permutations)


class _Progress(NamedTuple):
    """How far a scan has come: kept beside its files, so that the next start goes on there."""

    documents: int = 0
    position: Position = Position(0, 0, 0)
    whole: bool = False

    def write(self, folder: Path) -> None:
        atomic.write(folder / "progress.json", json.dumps(self))

    @classmethod
    def read(cls, folder: Path, permutations: int) -> _Progress:
        path = folder / "progress.json"
        if not path.exists():
            return cls()
        documents, position, whole = json.loads(path.read_text())
        sizes = {"rows": 8 * documents, "signatures": 4 * permutations * documents}
        there = all((folder / name).stat().st_size >= size for name, size in sizes.items())
        return cls(documents, Position(*position), whole) if there else cls()


def _signatures(source: Source, rules: NearRules, folder: Path, processes: int) -> Signed:
    """The signatures of a source, memory-mapped; made where they are not whole yet."""
    with _alone(folder):
        folder.mkdir(exist_ok=True)
        done = _Progress.read(folder, rules.permutations)
        if not done.whole:
            done = _sign(source, rules, folder, done, processes)
    if not done.documents:
        return np.zeros(0, np.int64), np.zeros((0, rules.permutations), np.uint32)
    shape = (done.documents, rules.permutations)
    return (
        np.memmap(folder / "rows", np.int64, "r", shape=(done.documents,)),
        np.memmap(folder / "signatures", np.uint32, "r", shape=shape),
    )


def _sign(source: Source, rules: NearRules, folder: Path, done: _Progress, processes: int) -> _Progress:
    work = _Sign(rules.ngram, rules.permutations)
    passed = scan(source, work, processes=processes, start=done.position, doing="looking for near duplicates")
    with (
        _after(folder / "rows", 8 * done.documents) as rows,
        _after(folder / "signatures", 4 * rules.permutations * done.documents) as signed,
    ):
        for number, ((ordinals, matrix), position) in enumerate(passed, 1):
            rows.write(ordinals.tobytes())
            signed.write(matrix.tobytes())
            done = _Progress(done.documents + len(ordinals), position)
            if number % KEPT_EVERY == 0:
                rows.flush()
                signed.flush()
                done.write(folder)
    done = done._replace(whole=True)
    done.write(folder)
    return done


def _after(path: Path, size: int) -> IO[bytes]:
    """The file open for writing after its first `size` bytes: what a killed scan wrote beyond them is written again."""
    file = open(path, "r+b" if path.exists() else "wb")
    file.truncate(size)
    file.seek(size)
    return file


def _alone(path: Path) -> FileLock:
    """The ranks of a run want the same at the same time: one makes it, the others wait and read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_suffix(".lock"))
