"""A source made ready: its files, what is held out of it, and which rows of it are duplicates."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from lifecycle.data.files import File, fingerprint
from lifecycle.data.specs import SourceSpec, ValidationRatio


@dataclass(frozen=True, kw_only=True)
class BadRows:
    """How much broken input a run bears: past `max_share` of a source's rows, once `min_rows` were read, it ends."""

    max_share: float
    min_rows: int


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
        digest = xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), seed=self.seed)
        return digest < self.ratio * 2**64


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of a mixture as the readers need it. Picklable; the same in every process."""

    name: str
    index: int
    spec: SourceSpec
    files: tuple[File, ...]
    bad_rows: BadRows
    held_out: HeldOut | None = None
    duplicates: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    quarantine: Path | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of the files and of how their rows are treated; weight and repetition do not enter."""
        treated = dataclasses.replace(self.spec, weight=1.0, max_epochs=None, domain=None, tokens=None)
        text = f"{fingerprint(self.files)} {treated!r} {self.held_out!r}"
        return xxhash.xxh3_128_hexdigest(text.encode())

    @property
    def domain(self) -> str:
        """The domain whose validation numbers this source counts towards."""
        return self.spec.domain or self.name
