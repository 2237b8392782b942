"""Prompts of a step, of the view `prompt`: what completions are sampled for, graded and trained on.

A step is a number of prompts. Nothing of them is packed: rows exist once completions are sampled (`Rollout`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lifecycle.batch.items import Prompt

PLACES = 2**24
"""More prompts than any step has: `number` is the step times this, plus the place in the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """P prompts of a step.

    number: (P,) int64, of this visit of the prompt, the same on any ranks and workers: what its samples are seeded by,
    and the `prompt_id` of a `Rollout`; below 0 for held-out ones. id: of the record, the same in every visit. ids: the
    tokens of the prompt.
    answer, meta: what rewards read. source_ids: (P,) int64. The tensors stay on the CPU.
    """

    number: Tensor
    id: list[str]
    ids: list[list[int]]
    answer: list[str | None]
    meta: list[Mapping[str, Any]]
    source_ids: Tensor

    @classmethod
    def of(cls, rows: Iterable[tuple[Prompt, int] | None], *, step: int, first: int) -> PromptBatch:
        """From rows of step `step`: each a prompt and its source's index, or empty; first: place of the first row."""
        numbered = [(step * PLACES + first + i, *row) for i, row in enumerate(rows) if row is not None]
        prompts = [(prompt, source) for _, prompt, source in numbered]
        return cls(
            number=torch.tensor([number for number, *_ in numbered], dtype=torch.long, device="cpu"),
            id=[prompt.id for prompt, _ in prompts],
            ids=[prompt.ids.tolist() for prompt, _ in prompts],
            answer=[prompt.answer for prompt, _ in prompts],
            meta=[prompt.meta for prompt, _ in prompts],
            source_ids=torch.tensor([source for _, source in prompts], dtype=torch.long, device="cpu"),
        )

    @classmethod
    def joined(cls, parts: Iterable[PromptBatch]) -> PromptBatch:
        """The prompts of all parts, one part after the other; at least one part."""
        parts = list(parts)
        return cls(
            number=torch.cat([part.number for part in parts]),
            id=[one for part in parts for one in part.id],
            ids=[one for part in parts for one in part.ids],
            answer=[one for part in parts for one in part.answer],
            meta=[one for part in parts for one in part.meta],
            source_ids=torch.cat([part.source_ids for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def packed(self) -> None:
        """There are no rows before completions are sampled."""
        return None

    def weight_by_source(self, sources: int) -> Tensor:
        """(S,) float64: prompts."""
        return torch.bincount(self.source_ids, minlength=sources).double()

    def tokens_by_source(self, sources: int) -> Tensor:
        """(S,) float64: none is trained yet."""
        return torch.zeros(sources, dtype=torch.float64, device="cpu")

    def to(self, device: torch.device, non_blocking: bool = False) -> PromptBatch:
        """Itself: a sampler is given ids, which lie on the host."""
        return self

    def rows(self, start: int, stop: int) -> PromptBatch:
        """Prompts [start, stop)."""
        return self.at(range(len(self))[start:stop])

    def at(self, indices: Iterable[int]) -> PromptBatch:
        """The prompts at `indices`, in that order."""
        chosen = list(indices)
        part = torch.tensor(chosen, dtype=torch.long, device="cpu")
        return PromptBatch(
            number=self.number[part],
            id=[self.id[i] for i in chosen],
            ids=[self.ids[i] for i in chosen],
            answer=[self.answer[i] for i in chosen],
            meta=[self.meta[i] for i in chosen],
            source_ids=self.source_ids[part],
        )
