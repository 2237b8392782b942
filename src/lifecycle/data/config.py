"""The data of a run as its config states it: the types of the keys of conf/data, whose meaning stands there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lifecycle.bounds import Count
from lifecycle.data.clean.contamination import Decontaminate
from lifecycle.data.clean.source import BadRows
from lifecycle.data.curriculum.curriculum import Curriculum
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.packing import LongExamples
from lifecycle.tokenizer.tokenizer import TokenizerRecipe


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Values alone: `Corpus` opens what they name, and a `DataModule` reads it."""

    sources: dict[str, SourceSpec]
    tokenizer: str | TokenizerRecipe
    root: str | None
    chat_template: str
    prepared: str | None
    streams: Count | None
    shuffle_buffer: Count
    exhausted: Literal["error", "drop"]
    long_examples: LongExamples
    epoch_source: str | None
    bad_rows: BadRows
    decontaminate: Decontaminate | None
    curriculum: Curriculum | None = None
