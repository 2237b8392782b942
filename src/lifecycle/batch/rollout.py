"""Completions that a model sampled, and the sets of tokens that each draw chose from.

Shapes: N completions of a rollout, T tokens of the longest, L draws, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

StopReason = Literal["stop_id", "stop_string", "length", "capacity", "done", "turns"]
"""Why a completion ended: a stop token, a stop string, its length in tokens, the model's last position, its environment
was done, or it called that once more than it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """What a policy and its environment said in one completion.

    turns: texts, each with whether the policy said it; joined they are the completion. calls: how often the environment
    was asked; failed: how often it could not do what it was asked. reward: the sum of those that it gave.
    """

    turns: list[tuple[bool, str]]
    calls: int
    failed: int
    reward: float

    @property
    def said(self) -> str:
        """All that the policy said itself."""
        return "".join(text for said, text in self.turns if said)

    @property
    def last_said(self) -> str:
        """What the policy said since it was last answered: what it answers itself."""
        said, text = self.turns[-1] if self.turns else (True, "")
        return text if said else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The tokens that each of L draws chose from: draw t from `ids[offsets[t] : offsets[t + 1]]`, and from the whole
    vocabulary where that is empty.

    offsets: (L + 1,) int64 on the CPU. ids: int32, on the device of who computes with them.
    """

    offsets: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Tensor:
        """(L,) int64: tokens of each set, 0 for the whole vocabulary."""
        return self.offsets.diff()

    @classmethod
    def whole(cls, draws: int) -> Kept:
        """Draws from the whole vocabulary."""
        return cls(
            offsets=torch.zeros(draws + 1, dtype=torch.long, device="cpu"),
            ids=torch.zeros(0, dtype=torch.int32, device="cpu"),
        )

    @classmethod
    def of_counts(cls, counts: Tensor, ids: Tensor) -> Kept:
        """From the sizes (L,) of sets whose ids follow on one another."""
        return cls(offsets=F.pad(counts.cpu().cumsum(0), (1, 0)), ids=ids.int())

    @classmethod
    def of_mask(cls, kept_LV: Tensor, counts: Tensor | None = None) -> Kept:
        """From bool over the vocabulary. counts: `listed(kept_LV).sum(1)` on the host, without which a device is waited
        for."""
        listed_LV = listed(kept_LV)
        counts = listed_LV.sum(-1).cpu() if counts is None else counts
        return cls.of_counts(counts, torch.nonzero_static(listed_LV, size=int(counts.sum()))[:, 1])

    @classmethod
    def joined(cls, parts: Sequence[Kept]) -> Kept:
        """The draws of all parts, one part after the other."""
        return cls.of_counts(torch.cat([part.counts for part in parts]), torch.cat([part.ids for part in parts]))

    def first(self, draws: int) -> Kept:
        """Those in front."""
        if draws == len(self):
            return self
        return Kept(offsets=self.offsets[: draws + 1], ids=self.ids[: int(self.offsets[draws])])

    def take(self, draws: Tensor) -> Kept:
        """The draws (M,) int64, in that order."""
        counts = self.counts[draws]
        ends = counts.cumsum(0)
        shift = torch.repeat_interleave(self.offsets[draws] - (ends - counts), counts)
        places = torch.arange(len(shift), device=shift.device) + shift
        return Kept.of_counts(counts, self.ids[places.to(self.ids.device)])

    def mask(self, part: slice, vocab: int) -> Tensor:
        """(C, V) bool of some draws, on the device of the ids."""
        counts, device = self.counts[part], self.ids.device
        start, stop = int(self.offsets[part.start]), int(self.offsets[part.start + len(counts)])
        rows = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), counts).to(device)
        kept_CV = (counts == 0).to(device)[:, None].repeat(1, vocab)
        kept_CV[rows, self.ids[start:stop].long()] = True
        return kept_CV

    def to(self, device: torch.device) -> Kept:
        """The same for who computes on `device`."""
        return Kept(offsets=self.offsets, ids=self.ids.to(device))


def listed(kept_LV: Tensor) -> Tensor:
    """(L, V) bool: the tokens that `Kept` lists, which are none where all are kept."""
    return kept_LV & ~kept_LV.all(-1, keepdim=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Completions that a model sampled, with what is needed to score, replay and train on them.

    prompt_id, sample, seed: (N,) int64: the prompt's stable number, which of its completions, and the seed of all draws
    of this one. prompts: ids of each completion's prompt. token_ids (N, T) int64: the completions, 0 behind their ends;
    length (N,) int64: how many tokens of each exist (what ended it is one of them). sampled (N, T) bool: those of them
    that the policy drew; what a tool answered in between is not. Of each sampled token, (N, T) fp32, 0 elsewhere:
    logprobs under the distribution it was drawn from, full_logprobs under the untruncated one (same temperature and
    penalty), and entropy of the latter in nats. kept: the tokens that each of the N T was drawn from, row after row.
    text: of each completion. weights_version: of the model. dialogues: of each completion, where there was an
    environment; None: there was none. experts: (N, T, layers, A) int16, those that were visited at the position before
    each token, in the layers that have them, -1 for a token that was not drawn; None: not noted. meta: further facts,
    plain values.
    """

    prompt_id: Tensor
    sample: Tensor
    seed: Tensor
    prompts: list[list[int]]
    token_ids: Tensor
    length: Tensor
    sampled: Tensor
    text: list[str]
    logprobs: Tensor
    full_logprobs: Tensor
    entropy: Tensor
    kept: Kept
    stop_reason: list[StopReason]
    weights_version: int
    dialogues: list[Dialogue] | None = None
    experts: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def exists(self) -> Tensor:
        """(N, T) bool: places that hold a token."""
        return torch.arange(self.token_ids.shape[1], device="cpu") < self.length[:, None]

    def completion(self, index: int) -> list[int]:
        """The token ids of one completion."""
        ids: list[int] = self.token_ids[index, : int(self.length[index])].tolist()
        return ids

    def kept_of(self, tokens_NT: Tensor) -> Kept:
        """The sets of some tokens, bool, row after row: as a loss over `hidden_NTD[tokens_NT]` wants them."""
        return self.kept.take(tokens_NT.flatten().nonzero()[:, 0])

    def rows(self, indices: Sequence[int]) -> Rollout:
        """The completions at `indices`, in that order."""
        chosen, T = torch.tensor(list(indices), dtype=torch.long, device="cpu"), self.token_ids.shape[1]
        parts: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Kept):
                parts[f.name] = value.take((chosen[:, None] * T + torch.arange(T, device="cpu")).flatten())
            elif isinstance(value, Tensor):
                parts[f.name] = value[chosen]
            elif isinstance(value, list):
                parts[f.name] = [value[i] for i in indices]
            else:
                parts[f.name] = value
        return Rollout(**parts)

    @classmethod
    def joined(cls, parts: Sequence[Rollout]) -> Rollout:
        """The completions of all parts, one part after the other; at least one part, all of one version of the weights.
        The meta is that of the first."""
        if len(parts) == 1:
            return parts[0]
        T = max(part.token_ids.shape[1] for part in parts)
        made: dict[str, Any] = {}
        for f in fields(cls):
            values = [getattr(part, f.name) for part in parts]
            if f.name == "kept":
                counts = [_widened(part.kept.counts.view(part.token_ids.shape), T).flatten() for part in parts]
                made["kept"] = Kept.of_counts(torch.cat(counts), torch.cat([kept.ids for kept in values]))
            elif isinstance(values[0], Tensor):
                made[f.name] = torch.cat([_widened(value, T) if value.dim() > 1 else value for value in values])
            elif isinstance(values[0], list):
                made[f.name] = [one for value in values for one in value]
            else:
                made[f.name] = values[0]
        return cls(**made)

    def state(self) -> dict[str, Any]:
        """Tensors and plain containers, for a checkpoint."""
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        said = None if self.dialogues is None else [asdict(one) for one in self.dialogues]
        return state | {"kept": {"offsets": self.kept.offsets, "ids": self.kept.ids}, "dialogues": said}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Rollout:
        """The inverse of `state`."""
        said = state["dialogues"]
        dialogues = None if said is None else [Dialogue(**one) for one in said]
        return cls(**{**state, "kept": Kept(**state["kept"]), "dialogues": dialogues})


def _widened(values_NT: Tensor, T: int) -> Tensor:
    """With zeros behind the end of each row; what a place holds may have further dimensions."""
    return F.pad(values_NT, (*[0, 0] * (values_NT.dim() - 2), 0, T - values_NT.shape[1]))
