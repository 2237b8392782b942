"""Tokens and log-probabilities of decode steps, collected on the device, and the `Rollout` made of them.

Shapes: N sequences, T most new tokens, B rows of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lifecycle.batch import Dialogue, Kept, Rollout, StopReason
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.rollout.sampling.stop_conditions import Decoding

FACTS = 3
"""Numbers of each token: log-probability, the untruncated one, entropy."""


class Collected:
    """Tokens, their numbers (`FACTS`) and, if `sets`, their kept sets, by sequence; inactive rows write behind the
    last."""

    def __init__(self, sequences: int, tokens: int, *, device: torch.device, sets: bool = True) -> None:
        self._ids = torch.zeros(sequences + 1, tokens, dtype=torch.long, device=device)
        self._facts = torch.zeros(sequences + 1, tokens, FACTS, dtype=torch.float32, device=device)
        self.with_sets = sets
        self._experts: Tensor | None = None
        self._places, self._kept = list[Tensor](), list[Kept]()
        self._lengths = [0] * sequences
        self._reasons: list[StopReason] = ["length"] * sequences
        self._told = list[tuple[int, int, Sequence[int]]]()

    def add(
        self, places_B: Tensor, numbers_B: Tensor, ids_B: Tensor, facts_BF: Tensor, experts: Tensor | None = None
    ) -> None:
        """Row b drew token `numbers_B[b]` (from 0) of sequence `places_B[b]`; experts: (B, layers, A) that the position
        before it visited. All the same for several steps, (T, B)."""
        self._ids[places_B, numbers_B] = ids_B
        self._facts[places_B, numbers_B] = facts_BF
        if self._experts is not None and experts is not None:
            self._experts[places_B, numbers_B] = experts.to(torch.int16)
        if self.with_sets:
            self._places.append((places_B * self._ids.shape[1] + numbers_B).flatten())

    def note_experts(self, layers: int, active: int) -> None:
        """Take `active` experts of each of so many layers from now on."""
        shape = (*self._ids.shape, layers, active)
        self._experts = torch.full(shape, -1, dtype=torch.int16, device=self._ids.device)

    def keep(self, kept: Kept) -> None:
        """Add the kept sets of what was added last."""
        self._kept.append(kept)

    def tell(self, sequence: int, number: int, ids: Sequence[int]) -> None:
        """Tokens from `number` on that the sequence has not drawn."""
        self._told.append((sequence, number, ids))

    def end(self, sequence: int, length: int, reason: StopReason) -> None:
        """Enter how long the finished sequence is, in tokens, and why it ended."""
        self._lengths[sequence], self._reasons[sequence] = length, reason

    def rollout(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        prompt_ids: Sequence[int],
        seeds: Sequence[int],
        tokenizer: Decoding | None,
        weights_version: int,
        dialogues: list[Dialogue] | None = None,
    ) -> Rollout:
        """All sequences, `samples` of a prompt together; `prompts`, `prompt_ids` and `dialogues` of each sequence."""
        longest = max(self._lengths, default=0)
        # clones: tensors made in inference mode could not enter a loss
        ids, facts = (x[:-1, :longest].cpu().clone() for x in (self._ids, self._facts))
        length = torch.tensor(self._lengths, dtype=torch.long, device="cpu")
        exists = torch.arange(longest, device="cpu") < length[:, None]
        sampled = exists.clone()
        for sequence, number, told in self._told:
            part = slice(number, number + len(told))
            ids[sequence, part], sampled[sequence, part] = torch.tensor(told, dtype=torch.long, device="cpu"), False
        experts = None if self._experts is None else self._experts[:-1, :longest].cpu().clone()
        if experts is not None:
            experts[~exists] = -1  # a sequence may have drawn on behind its end
        logprobs, full, entropy = (torch.where(exists, x, 0) for x in facts.unbind(-1))
        drawn = [x.cpu() for x in (torch.cat(self._places), Kept.joined(self._kept).ids)] if self._kept else []
        completions = [line[:end] for line, end in zip(ids.tolist(), self._lengths, strict=True)]
        return Rollout(
            prompt_id=torch.tensor(prompt_ids, dtype=torch.long, device="cpu"),
            sample=torch.arange(len(prompts), device="cpu") % samples,
            seed=torch.tensor(seeds, dtype=torch.long, device="cpu"),
            prompts=[list(prompt) for prompt in prompts],
            token_ids=torch.where(exists, ids, 0),
            length=length,
            sampled=sampled,
            text=["" if tokenizer is None else tokenizer.decode(completion) for completion in completions],
            logprobs=logprobs,
            full_logprobs=full,
            entropy=entropy,
            kept=self._sets(exists, *drawn) if drawn else Kept.whole(exists.numel()),
            stop_reason=list(self._reasons),
            weights_version=weights_version,
            experts=experts,
            dialogues=dialogues,
        )

    def _sets(self, exists_NT: Tensor, at: Tensor, ids: Tensor) -> Kept:
        """The kept sets of N T places, row after row. at, ids: where those that came were drawn, in their order."""
        draws = torch.full((self._ids.numel(),), len(at), device="cpu")  # where nothing was drawn: the one added behind
        draws[at] = torch.arange(len(at), device="cpu")
        N, T = exists_NT.shape
        wanted = draws.view(self._ids.shape)[:N, :T]
        counts = torch.cat([*(kept.counts for kept in self._kept), torch.zeros(1, dtype=torch.long, device="cpu")])
        return Kept.of_counts(counts, ids).take(torch.where(exists_NT, wanted, len(at)).flatten())


def best(rollout: Rollout, sampling: Sampling) -> Rollout:
    """The `sampling.samples` best of every `sampling.drawn` completions, by mean or sum of their untruncated
    log-probabilities, the best first; of equals the one drawn first."""
    score_N = rollout.full_logprobs.double().sum(1)
    if sampling.best_by == "mean":
        score_N = score_N / rollout.sampled.sum(1).clamp(min=1)
    chosen = []
    for start in range(0, len(rollout), sampling.drawn):
        part = score_N[start : start + sampling.drawn]
        chosen += [start + int(i) for i in part.sort(descending=True, stable=True).indices[: sampling.samples]]
    return rollout.rows(chosen)
