"""One optimizer step: its micro-batches, and the state of the data engine after it.

A micro-batch is of one view: `TokenBatch` (text, chat), `PairBatch`, `UnpairedBatch` or `PromptBatch`. What the
arithmetic of a step asks of any of them is `MicroBatch`.

Shapes: B rows of a micro-batch, T positions of a row, S sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that is not trained (padding)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The state of the data engine after a step, in plain containers, for checkpoints.

    `step` is the number of steps consumed; `streams` maps a logical stream's index to its state after that step. At the
    end of the data, where what is left in all streams is dealt out together, `tail` is the state of that, and `streams`
    are those that it began with.
    """

    step: int
    streams: Mapping[int, Mapping[str, Any]]
    tail: Mapping[str, Any] | None = None


class MicroBatch(Protocol):
    """Part of a step that a device computes on at once, whatever view it is of."""

    @property
    def packed(self) -> TokenBatch | None:
        """The rows that the model reads; None where there are none before completions are sampled (prompts)."""

    def weight_by_source(self, sources: int) -> Tensor:
        """(S,) float64 on the CPU: what the loss that is summed over this batch is divided by, added up over the step:
        trained tokens by their weights, pairs, sequences or prompts."""

    def tokens_by_source(self, sources: int) -> Tensor:
        """(S,) float64 on the CPU: trained tokens, for the records of a run."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same batch on `device`."""

    def rows(self, start: int, stop: int) -> Self:
        """Rows [start, stop), or as many prompts, as a batch of their own."""


Micro = TypeVar("Micro", bound=MicroBatch)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Packed rows: the documents of a row are numbered 1, 2, ... from the left, 0 is padding.

    input_ids, labels, position_ids, document_ids, source_ids: (B, T) int64; labels are `IGNORED` where nothing is
    trained (padding, and what a view only shows), source_ids are -1 at padding. weights: (B, T) float32, of each label
    in the loss; None: all 1. shared: (B, T) int64, k in the prompt number k of a row that several documents of it begin
    with, -k in what follows it in each of them, 0 elsewhere; the prompt is counted to the first; None: nothing is
    shared. `single`: every row is one document without padding (attention may be plainly causal).
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    document_ids: Tensor
    source_ids: Tensor
    weights: Tensor | None = None
    shared: Tensor | None = None
    single: bool = False

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, single: bool = False) -> TokenBatch:
        """From the tensors by name; `weights` and `shared` may be absent."""
        ids, labels, positions = tensors["input_ids"], tensors["labels"], tensors["position_ids"]
        documents, sources = tensors["document_ids"], tensors["source_ids"]
        return cls(
            input_ids=ids,
            labels=labels,
            position_ids=positions,
            document_ids=documents,
            source_ids=sources,
            weights=tensors.get("weights"),
            shared=tensors.get("shared"),
            single=single,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name: five, and those of the others that there are."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "single"}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def packed(self) -> TokenBatch:
        """Itself."""
        return self

    @property
    def trained(self) -> Tensor:
        """(B, T) bool: positions whose label enters the loss."""
        return self.labels != IGNORED

    def weight_by_source(self, sources: int) -> Tensor:
        """(S,) float64: trained tokens by their weights."""
        trained = self.trained
        weights = None if self.weights is None else self.weights[trained].double()
        return torch.bincount(self.source_ids[trained], weights, minlength=sources).double()

    def tokens_by_source(self, sources: int) -> Tensor:
        """(S,) float64: trained tokens."""
        return torch.bincount(self.source_ids[self.trained], minlength=sources).double()

    def to(self, device: torch.device, non_blocking: bool = False) -> TokenBatch:
        """The same batch on `device`."""
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.tensors().items()}
        return TokenBatch.of(moved, single=self.single)

    def rows(self, start: int, stop: int) -> TokenBatch:
        """Rows [start, stop) as a batch of their own (views)."""
        parts = {name: tensor[start:stop] for name, tensor in self.tensors().items()}
        return TokenBatch.of(parts, single=bool((parts["document_ids"] == 1).all()))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch(Generic[Micro]):
    """One rank's whole share of one optimizer step: its micro-batches, and the cursor that follows the step."""

    step: int
    micro: list[Micro]
    cursor: Cursor
