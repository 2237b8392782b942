"""The typed records and batches that data and stages share, and all that they share.

Shapes: B rows of a micro-batch, T positions of a row, N completions of a rollout.

A document is `[bos] + text + [eos]`. A piece of it is a slice `ids[a : b + 1]`: its inputs are `ids[a:b]` and its
labels `ids[a + 1 : b + 1]`. So every position of a row carries its own label, a document that is cut loses no label at
the cut, and nothing is shifted later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that is not trained (padding)."""


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
class Cursor:
    """Where the data engine stands after a step: plain containers only, so that it checkpoints.

    `step` is the number of steps consumed; `streams` maps a logical stream's index to its state after that step.
    """

    step: int
    streams: Mapping[int, Mapping[str, Any]]


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


StopReason = Literal["stop_id", "stop_string", "length", "capacity"]
"""Why a completion ended: a stop token, a stop string, its length in tokens, or the model's last position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Completions that a model sampled, with what is needed to score, replay and train on them.

    prompt_id, sample, seed: (N,) int64: the prompt's stable number, which of its completions, and the seed of all draws
    of this one. prompts: ids of each completion's prompt. token_ids (N, T) int64: the completions, 0 behind their ends;
    mask (N, T) bool: the tokens that were sampled (what ended a completion is one of them). Of each sampled token,
    (N, T) fp32, 0 elsewhere: logprobs under the distribution it was drawn from, full_logprobs under the untruncated one
    (same temperature and penalty), entropy of the latter in nats, and threshold: the tokens whose untruncated
    log-probability is not below it are the kept set, -inf for all. text: of each completion. weights_version: of the
    model. meta: further facts, plain values.
    """

    prompt_id: Tensor
    sample: Tensor
    seed: Tensor
    prompts: list[list[int]]
    token_ids: Tensor
    mask: Tensor
    text: list[str]
    logprobs: Tensor
    full_logprobs: Tensor
    entropy: Tensor
    threshold: Tensor
    stop_reason: list[StopReason]
    weights_version: int
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> Tensor:
        """(N,) int64: tokens of each completion."""
        return self.mask.sum(1)

    def completion(self, index: int) -> list[int]:
        """The token ids of one completion."""
        ids: list[int] = self.token_ids[index][self.mask[index]].tolist()
        return ids

    def rows(self, indices: Sequence[int]) -> Rollout:
        """The completions at `indices`, in that order."""
        chosen = torch.tensor(list(indices), dtype=torch.long, device="cpu")
        parts: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                parts[f.name] = value[chosen]
            elif isinstance(value, list):
                parts[f.name] = [value[i] for i in indices]
            else:
                parts[f.name] = value
        return Rollout(**parts)

    def state(self) -> dict[str, Any]:
        """Tensors and plain containers, for a checkpoint."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Rollout:
        """The other way of `state`."""
        return cls(**state)
