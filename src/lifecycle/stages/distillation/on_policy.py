"""On-policy distillation: some sequences of a step are written by the student itself, and the teacher judges them.

    conversation of the data -> its last answer is cut off -> the student samples another one -> packed into rows

Which sequences, and every draw, follow from (seed of the run, step, content of the sequence) alone: ranks,
micro-batches and the way that rows are packed change nothing, and a run that goes on samples what the one before it
did. The engine is made anew in each step, so that nothing of it has to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lifecycle.batch import IGNORED, Rollout, TokenBatch
from lifecycle.bounds import Count, PartOrAll, Positive
from lifecycle.model import Decoder
from lifecycle.rollout.engine import generate
from lifecycle.rollout.sampling.parameters import Sampling, sequence_seed, uniforms
from lifecycle.stages.distillation.lesson import Lesson
from lifecycle.stages.distillation.sequences import PackedSequence, in_rows, packed, sequences_of
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.collectives import highest_of_ranks

CHOICE = 1
"""Number of the draw that chooses; the completion itself is number 0 of its sequence."""


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """share: of the sequences of a step, by chance. form: how the student learns from what it wrote: by the divergence
    (supervised, GKD), or by policy gradient. max_new_tokens: of an answer. temperature: of the draws. slots: sequences
    sampled at a time."""

    share: PartOrAll
    form: Literal["supervised", "policy_gradient"]
    max_new_tokens: Count
    temperature: Positive
    slots: Count


class Sampler:
    """Replaces sequences of a step by the student's own."""

    def __init__(self, keys: OnPolicy, setup: Setup) -> None:
        self.keys, self._setup = keys, setup

    def lessons(self, micro: Sequence[TokenBatch], network: Decoder, *, step: int) -> list[Lesson]:
        """The rows of the step, those of the data first; the same number of micro-batches on every rank."""
        length, rows = micro[0].labels.shape[1], max(len(batch.labels) for batch in micro)
        weighted = micro[0].weights is not None
        found = [one for batch in micro for one in sequences_of(batch)]
        numbers = _numbers(found)
        chosen = {
            i
            for i, number in enumerate(numbers)
            if self._is_chosen(number, step) and self._can_be_written(found[i], network)
        }
        kept = in_rows([one for i, one in enumerate(found) if i not in chosen], length)
        own = in_rows(self._sampled([(numbers[i], found[i]) for i in sorted(chosen)], network, step, length), length)
        parts = [[every[at : at + rows] for at in range(0, len(every), rows)] for every in (kept, own)]
        most = highest_of_ranks([len(part) for part in parts], network.embedding.weight.device)
        lessons = []
        for part, count, sampled in zip(parts, most, (False, True), strict=True):
            for at in range(count):
                mine = part[at] if at < len(part) else []
                room = few_sizes(len(mine), rows) if self._setup.compile else 0
                tokens = packed(mine, length, weighted=weighted and not sampled, least=room)
                lessons.append(_lesson(mine, tokens, sampled=sampled))
        return lessons

    def _is_chosen(self, number: int, step: int) -> bool:
        seed = torch.tensor([sequence_seed(self._setup.seed, step, number, CHOICE)], device="cpu")
        return float(uniforms(seed, torch.zeros(1, dtype=torch.long, device="cpu"))) < self.keys.share

    def _can_be_written(self, one: PackedSequence, network: Decoder) -> bool:
        """Whether it is whole, and has a prompt with room behind it."""
        return one.position == 0 and 0 < len(_prompt(one)) < network.config.max_positions

    def _sampled(
        self, chosen: Sequence[tuple[int, PackedSequence]], network: Decoder, step: int, length: int
    ) -> list[PackedSequence]:
        """Each with the student's answer in the place of its own, as far as a row has room. Every rank must call."""
        able = [(number, one, _prompt(one)) for number, one in chosen]
        tokens = self._setup.tokens or network.config.vocab
        sampling = Sampling(
            max_new_tokens=self.keys.max_new_tokens,
            temperature=self.keys.temperature,
            stop_ids=self._setup.end_ids,
            banned_ids=tuple(range(tokens, network.config.vocab)),  # rows that only fill the matrix up
        )
        rollout = generate(
            network,
            [prompt for _, _, prompt in able],
            sampling,
            seed=self._setup.seed,
            step=step,
            prompt_ids=[number for number, _, _ in able],
            slots=self.keys.slots,
        )
        return [_written(one, prompt, rollout, at, length) for at, (_, one, prompt) in enumerate(able)]


def few_sizes(rows: int, most: int) -> int:
    """At least so many rows, a power of two or `most`: every number of rows is compiled for anew."""
    return min(1 << max(rows - 1, 0).bit_length(), most)


def _numbers(sequences: Sequence[PackedSequence]) -> list[int]:
    """A number of each by its content; of equal ones also by which of them it is."""
    seen: dict[bytes, int] = {}
    out = []
    for one in sequences:
        seen[one.key] = seen.get(one.key, 0) + 1
        out.append((int.from_bytes(one.key[:7]) + seen[one.key]) % 2**56)
    return out


def _prompt(one: PackedSequence) -> list[int]:
    """What stands before its last answer; empty where nothing is trained."""
    trained = one.labels != IGNORED
    begins = (trained & ~torch.cat([torch.zeros(1, dtype=torch.bool, device="cpu"), trained[:-1]])).nonzero()[:, 0]
    ids: list[int] = one.ids[: int(begins[-1]) + 1].tolist() if len(begins) else []
    return ids


def _written(one: PackedSequence, prompt: list[int], rollout: Rollout, at: int, length: int) -> PackedSequence:
    ids = torch.tensor([*prompt, *rollout.completion(at)], device="cpu")[: length + 1]
    labels = ids[1:].clone()
    labels[: len(prompt) - 1] = IGNORED
    logp = rollout.logprobs[at, : len(ids) - len(prompt)]
    return PackedSequence(ids=ids[:-1], labels=labels, position=0, source=one.source, sampler_logp=logp)


def _lesson(rows: Sequence[Sequence[PackedSequence]], tokens: TokenBatch, *, sampled: bool) -> Lesson:
    lesson = Lesson.of(tokens)
    if not sampled:
        return lesson
    logp = [one.sampler_logp for row in rows for one in row if one.sampler_logp is not None]
    return Lesson(
        tokens=tokens,
        places=lesson.places,
        sampler_logp=torch.cat([torch.zeros(0, dtype=torch.float32, device="cpu"), *logp]).float(),
    )
