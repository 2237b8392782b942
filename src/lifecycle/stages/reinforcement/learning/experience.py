"""The graded samples of a step as micro-batches, for each of its updates.

What a sample is worth, and what the sum of a loss is divided by, is settled here over all ranks: how the samples are
split over ranks, updates' micro-batches and rows changes nothing afterwards.

Shapes: N samples of this rank, T most tokens of one, S of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lifecycle.batch import Micro, Places, PromptBatch, Rollout, SampleBatch, TokenBatch
from lifecycle.batch.prompts import PLACES
from lifecycle.losses.policy.normalisers import Normaliser, normaliser
from lifecycle.stages.reinforcement.learning.rows import laid, row_width
from lifecycle.stages.reinforcement.settings import PolicyKeys
from lifecycle.stages.step.collectives import gather_values, highest_of_ranks


@dataclass(frozen=True, kw_only=True)
class Experience:
    """Samples of this rank with what they are worth. trained: (N, T) bool, the tokens that are trained. advantage: (N,)
    fp32. computed: (N,) bool, the samples that updates compute; the others count in every divisor. prompts: those of
    the step on this rank."""

    prompts: PromptBatch
    rollout: Rollout
    trained: Tensor
    advantage: Tensor
    computed: Tensor

    @classmethod
    def of(cls, prompts: PromptBatch, rollout: Rollout, advantage: Tensor, *, mask_unfinished: bool) -> Experience:
        """All that the policy drew is trained; mask_unfinished: but for completions that were cut off."""
        trained = rollout.sampled
        if mask_unfinished:
            trained = trained & torch.tensor(finished(rollout), dtype=torch.bool, device="cpu")[:, None]
        computed = torch.ones(len(rollout), dtype=torch.bool, device="cpu")
        return cls(prompts=prompts, rollout=rollout, trained=trained, advantage=advantage, computed=computed)

    def without_idle(self) -> Experience:
        """The same without computing samples whose advantage is exactly 0: the gradient of their term is 0."""
        return replace(self, computed=self.advantage.cpu() != 0)

    @property
    def sources(self) -> list[int]:
        """Of each sample, the index of its prompt's source."""
        return [int(self.prompts.source_ids[i]) for i in prompt_of(self.rollout, self.prompts)]

    @property
    def place(self) -> Tensor:
        """(N,) int64, the place of each sample's prompt in the step, over all ranks."""
        return place_of(self.rollout)

    def parts(self, of: int, device: torch.device) -> list[list[int]]:
        """The samples of each of the updates of a step: whole groups, every `of`th of the prompts that there are on
        all ranks, so that each has as many of them as another, or one more; of fewer prompts there are fewer updates,
        and one of none. Every rank must call."""
        (place_S,), mine = of_all_ranks([self.place], device)
        places, number_S = place_S.unique(return_inverse=True)
        number_N, of = number_S[mine], min(of, max(1, len(places)))
        return [(number_N % of == part).nonzero()[:, 0].tolist() for part in range(of)]


@dataclass(frozen=True, kw_only=True)
class RowsOfSamples:
    """How samples become rows. width: of the model. most: positions of a micro-batch. shared: whether samples share the
    computation of their prompt."""

    width: int
    most: int
    shared: bool


def prompt_of(rollout: Rollout, prompts: PromptBatch) -> list[int]:
    """The index of each sample's prompt."""
    index = {number: i for i, number in enumerate(prompts.number.tolist())}
    return [index[one] for one in rollout.prompt_id.tolist()]


def place_of(rollout: Rollout) -> Tensor:
    """(N,) int64: the place of each sample's prompt in the step, over all ranks."""
    return rollout.prompt_id % PLACES


def finished(rollout: Rollout) -> list[bool]:
    """Whether each completion came to its own end, by a stop token, a stop text or an environment that was done."""
    return [reason in ("stop_id", "stop_string", "done") for reason in rollout.stop_reason]


def micro_batches(
    experience: Experience, samples: Sequence[int], keys: PolicyKeys, layout: RowsOfSamples, *, device: torch.device
) -> list[SampleBatch]:
    """Those of an update on some samples, equally many on every rank. Every rank must call."""
    rollout, trained_NT = experience.rollout.rows(samples), experience.trained[list(samples)]
    computed_N = experience.computed[list(samples)]
    found = normalised(trained_NT.sum(1), experience.place[list(samples)], computed_N, keys, device=device)
    trained_NT = trained_NT & computed_N[:, None]
    of_sample = experience.sources
    sources = [of_sample[n] for n in samples]
    wanted = trained_NT.any(1).tolist()
    width = row_width(rollout, wanted, shared=layout.shared, width=layout.width, most=layout.most)
    rows = laid(rollout, trained_NT, sources, width=width, shared=layout.shared)
    whole = _batch(rollout, rows.tokens, rows.order, rows.place_of_token, experience.advantage[list(samples)], found)
    return cut(whole, rows.tokens, most=layout.most, device=device)


def cut(whole: Micro, tokens: TokenBatch, *, most: int, device: torch.device) -> list[Micro]:
    """Micro-batches of at most `most` positions, or of a single row, equally many on every rank: the last ones may have
    no row. tokens: those of `whole`. Every rank must call."""
    rows, width = tokens.labels.shape
    per_micro = max(1, most // width)
    parts = [whole.rows(at, at + per_micro) for at in range(0, rows, per_micro)]
    (longest,) = highest_of_ranks([len(parts)], device)
    return [*parts, *[whole.rows(0, 0)] * (longest - len(parts))]


def normalised(
    tokens_N: Tensor, place_N: Tensor, computed_N: Tensor, keys: PolicyKeys, *, device: torch.device
) -> Normaliser:
    """Weight and divisor of each of this rank's samples; those that are computed carry the divisors of the others.
    Every rank must call."""
    (tokens_S, place_S, computed_S), mine = of_all_ranks([tokens_N, place_N, computed_N.long()], device)
    _, group_S = place_S.unique(return_inverse=True)
    weight_S, divisor_S = normaliser(tokens_S, group_S, kind=keys.normaliser, length=keys.length)
    carrying_S = divisor_S * (computed_S * (tokens_S > 0))
    if carrying_S.sum() > 0:
        divisor_S = carrying_S * (divisor_S.sum() / carrying_S.sum())
    return Normaliser(weight_S[mine], divisor_S[mine])


def of_all_ranks(values: Sequence[Tensor], device: torch.device) -> tuple[list[Tensor], slice]:
    """Each of some values by sample, all equally long, for the samples of all ranks, on the CPU; and which of them are
    this rank's. Every rank must call."""
    count = torch.tensor([len(values[0])], device=device)
    counts = gather_values(count).tolist()
    rank = torch.distributed.get_rank() if len(counts) > 1 else 0
    start = sum(counts[:rank])
    return [gather_values(value.to(device)).cpu() for value in values], slice(start, start + counts[rank])


def _batch(
    rollout: Rollout,
    tokens: TokenBatch,
    order: Sequence[int],
    place_N: Tensor,
    advantage: Tensor,
    found: Normaliser,
) -> SampleBatch:
    at, order_Q = Places.of(tokens), torch.tensor(list(order), dtype=torch.long, device="cpu")
    truncated = len(rollout.kept.ids) > 0
    return SampleBatch(
        tokens=tokens,
        at=at,
        advantage=advantage.float()[order_Q][at.sequence],
        weight=found.weight_S.float()[order_Q][at.sequence],
        divisor=found.divisor_S[order_Q],
        sampler_logp=rollout.logprobs.flatten()[place_N],
        kept=rollout.kept.take(place_N) if truncated else None,
        experts=None if rollout.experts is None else rollout.experts.flatten(0, 1)[place_N],
    )
