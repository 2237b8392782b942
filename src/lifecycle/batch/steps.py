"""What one optimizer step is made of: its micro-batches, and where the data engine stands after it.

Shapes: B rows of a micro-batch, T positions of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that is not trained (padding)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where the data engine stands after a step: plain containers only, so that it checkpoints.

    `step` is the number of steps consumed; `streams` maps a logical stream's index to its state after that step. At the
    end of the data, where what is left in all streams is dealt out together, `tail` is the state of that, and `streams`
    are those that it began with.
    """

    step: int
    streams: Mapping[int, Mapping[str, Any]]
    tail: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Packed rows: the documents of a row are numbered 1, 2, ... from the left, 0 is padding.

    input_ids, labels, position_ids, document_ids, source_ids: (B, T) int64; labels are `IGNORED` at padding and
    source_ids are -1 there. `single`: every row is one document without padding (attention may be plainly causal).
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    document_ids: Tensor
    source_ids: Tensor
    single: bool = False

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, single: bool = False) -> TokenBatch:
        """From the five tensors by name."""
        ids, labels, positions = tensors["input_ids"], tensors["labels"], tensors["position_ids"]
        documents, sources = tensors["document_ids"], tensors["source_ids"]
        return cls(
            input_ids=ids,
            labels=labels,
            position_ids=positions,
            document_ids=documents,
            source_ids=sources,
            single=single,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The five tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "single"}

    @property
    def trained(self) -> Tensor:
        """(B, T) bool: positions whose label enters the loss."""
        return self.labels != IGNORED

    def to(self, device: torch.device, non_blocking: bool = False) -> TokenBatch:
        """The same batch on `device`."""
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.tensors().items()}
        return TokenBatch.of(moved, single=self.single)

    def rows(self, start: int, stop: int) -> TokenBatch:
        """Rows [start, stop) as a batch of their own (views)."""
        parts = {name: tensor[start:stop] for name, tensor in self.tensors().items()}
        return TokenBatch.of(parts, single=bool((parts["document_ids"] == 1).all()))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One rank's whole share of one optimizer step: its micro-batches, and the cursor that follows the step."""

    step: int
    micro: list[TokenBatch]
    cursor: Cursor
