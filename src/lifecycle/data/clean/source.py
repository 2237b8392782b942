"""A source as readers need it: its files, its held-out split, and which rows are left out as copies of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from lifecycle.bounds import FromZero, Share
from lifecycle.data.clean.contamination import Index
from lifecycle.data.read.bytes.damage import OnDamage
from lifecycle.data.read.files.listing import File, Listing, fingerprint
from lifecycle.data.read.files.selection import Passed
from lifecycle.data.read.spec import SourceSpec, ValidationRatio

ELSEWHERE = (
    *("hub", "config", "data_dir", "revision", "path", "split", "validation"),
    *("domain", "weight", "max_epochs", "validation_tokens", "tokens", "prompts", "rewards", "shuffle_options"),
)
"""Keys of a source that do not change how a row is read: where the rows lie, and how they are used."""


@dataclass(frozen=True, kw_only=True)
class BadRows:
    """How much broken input a run accepts: once `min_rows` of a source were read, a share of bad rows above `max_share`
    ends the run with an error.

    damaged_files: whether a file that cannot be read on ends the run too, or the rest of the file is skipped.
    """

    max_share: Share
    min_rows: FromZero
    damaged_files: OnDamage = "error"


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Share `ratio` of the documents, chosen by the hash of their text, is validation data and never trained on."""

    ratio: float
    seed: int

    @classmethod
    def of(cls, spec: SourceSpec) -> HeldOut | None:
        """What `spec` holds out of its own documents; None where its validation data lies elsewhere."""
        share = spec.validation
        return cls(ratio=share.ratio, seed=share.seed) if isinstance(share, ValidationRatio) else None

    def holds(self, text: str) -> bool:
        """Whether the document is held out: a function of its text alone, so copies fall on the same side."""
        return text_hash(text, self.seed) < self.ratio * 2**64


def text_hash(text: str, seed: int) -> int:
    """A 64-bit hash of the text: documents of the smallest hashes are held out, the smallest of those are measured."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), seed=seed)


def among(ordinals: NDArray[np.int64]) -> Callable[[int], bool]:
    """A test whether a number is in `ordinals`; it needs one bit for each number up to the largest."""
    mask = np.zeros(int(ordinals.max(initial=-1)) + 1, bool)
    mask[ordinals] = True
    bits, size = np.packbits(mask, bitorder="little").tobytes(), len(mask)
    return lambda ordinal: ordinal < size and bool(bits[ordinal >> 3] >> (ordinal & 7) & 1)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of a mixture as the readers need it. Picklable; the same in every process.

    rows: ordinals, ascending, of the rows that are read; None: all.
    left_out: numbers of the rows that are not read because of *other* rows, by reason ("near duplicate").
    file_rows: rows of each file, where some are named by their number.
    passed: files that were found beside `files` and are not read, and why.
    shards: of a source that is read from prepared shards, the fingerprint of what they were made from; `files` may then
    be none.
    evaluation: items that no document may hold. quarantine, contaminated: files that list bad and contaminated rows.
    """

    name: str
    index: int
    spec: SourceSpec
    files: tuple[File, ...]
    bad_rows: BadRows
    held_out: HeldOut | None = None
    left_out: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    evaluation: Index | None = None
    quarantine: Path | None = None
    contaminated: Path | None = None
    rows: NDArray[np.int64] | None = None
    file_rows: NDArray[np.int64] | None = None
    passed: Passed = field(default_factory=dict)
    shards: str | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of the files' content and the treatment of rows; weight, repetition and paths do not change it."""
        if self.shards is not None:
            return self.shards
        others = {reason: xxhash.xxh3_128_hexdigest(rows.tobytes()) for reason, rows in self.left_out.items()}
        text = f"{fingerprint(self.files)} {self.treatment} {others!r}"
        text += self.evaluation.key if self.evaluation else ""
        text += f" {xxhash.xxh3_128_hexdigest(self.rows.tobytes())}" if self.rows is not None else ""
        return xxhash.xxh3_128_hexdigest(text.encode())

    @property
    def treatment(self) -> str:
        """A hash of how the config wants a row to be read, filtered and held out, whatever files the rows are in."""
        anywhere = {key: getattr(SourceSpec, key) for key in ELSEWHERE}
        treated = dataclasses.replace(self.spec, **anywhere)
        text = f"{_given(treated)!r} {self.held_out!r}"
        text += classifier.version if (classifier := self.spec.filters.classifier) else ""
        return xxhash.xxh3_128_hexdigest(text.encode())

    @property
    def listing(self) -> Listing:
        """Its files, and the files that were found beside them and are not read."""
        return Listing(self.files, self.passed)

    @property
    def left_out_counts(self) -> dict[str, int]:
        """Number of rows left out, by the verdict that they are counted under."""
        return {f"dropped:{reason}": len(rows) for reason, rows in self.left_out.items() if len(rows)}

    @property
    def is_numbered(self) -> bool:
        """Whether some of its rows are named by their number."""
        return bool(self.left_out_counts) or self.spec.max_rows is not None or self.rows is not None

    @property
    def left_out_rows(self) -> NDArray[np.int64]:
        """Numbers of all rows that are left out, ascending."""
        return np.unique(np.concatenate([np.zeros(0, np.int64), *self.left_out.values()]))

    def leaves_out(self) -> Callable[[int], bool]:
        """A test whether the row of a number is left out; one byte a row, where a set of numbers takes sixty."""
        size = max((int(rows.max()) + 1 for rows in self.left_out.values() if len(rows)), default=0)
        mask = np.zeros(size, np.uint8)
        for rows in self.left_out.values():
            mask[rows] = 1
        flags = mask.tobytes()  # indexed one by one: bytes are several times as fast as an array
        return lambda ordinal: ordinal < size and flags[ordinal] == 1

    @property
    def domain(self) -> str:
        """The domain whose validation numbers this source counts towards."""
        return self.spec.domain or self.name


def _given(value: Any) -> Any:
    """The values of a spec that are not the default, so that a key added by a later version changes no fingerprint."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    given = {}
    for one in dataclasses.fields(value):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if (mine := getattr(value, one.name)) != default:
            given[one.name] = _given(mine)
    return given
