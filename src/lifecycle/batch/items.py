"""Rows of sources in the project's own terms, and what a view makes of them: the items that the data engine carries.

A sequence is `[bos] + text + [eos]`. A piece of it is a slice `ids[a : b + 1]`: its inputs are `ids[a:b]` and its
labels `ids[a + 1 : b + 1]`. So every position of a row carries its own label, a sequence that is cut loses no label at
the cut, and nothing is shifted later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
"""Token ids of one sequence."""

TURNS = "turns"
"""Key of a prompt's `meta` for its turns, as a list of role and content: for who reads it in another form."""
TRAINED_FROM = "trained_from"
"""Key of a record's `meta`: the turn of its messages from which on the assistant's are trained."""
KEPT = "columns"
"""Key of a record's and a prompt's `meta`: columns of its row that are kept for a reward of the user's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row of a source in the project's own terms; a format fills the fields of its kind, the rest stay None."""

    id: str
    source: str
    domain: str
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    answer: str | None = None
    chosen: Any = None
    rejected: Any = None
    completion: str | None = None
    label: bool | None = None
    level: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One sequence of the views `text`, `chat` and `unpaired`, and one side of a `Pair`.

    ids: (n,) int32, n >= 2, with the marks of begin and end. trained: (n,) bool, whether each token is trained as a
    label; None: all of them. The first token is never a label. weight: (n,) float32, of each label in the loss; None:
    1. wanted: whether a completion of the view `unpaired` is a good one; None in every other view.
    """

    ids: Ids
    trained: NDArray[np.bool_] | None = None
    weight: NDArray[np.float32] | None = None
    wanted: bool | None = None

    @property
    def size(self) -> int:
        """Positions that it takes of a row: each but the last token is an input."""
        return len(self.ids) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two completions of one prompt, of the views `preference` and `comparison`.

    chosen, rejected: the whole sequences, which begin with the ids of `prompt`; trained are tokens behind it.
    margin: by how much the chosen one was judged better; None where that is not given.
    """

    prompt: Ids
    chosen: Example
    rejected: Example
    margin: float | None = None

    @property
    def size(self) -> int:
        """Positions of both sides."""
        return self.chosen.size + self.rejected.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt to sample completions of, of the view `prompt`: its ids, the known answer, and what rewards read in
    `meta` (plain values). `id`: the record's."""

    id: str
    ids: Ids
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """In a step prompts are counted."""
        return 1


Item = Example | Pair | Prompt
"""What a view makes of a record, and what the data engine carries."""


def positions(item: Item) -> int:
    """Positions of an item in a row; of a prompt, its tokens."""
    return len(item.ids) if isinstance(item, Prompt) else item.size
