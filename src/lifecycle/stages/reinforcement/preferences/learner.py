"""Online preferences: of the samples of a prompt the best and the worst become a pair, and a loss of pairs is its loss.

    rewards -> 1 for the best sample of a prompt, -1 for the worst, 0 for the others -> pairs -> a loss by its name

A prompt gives no pair where its best and worst reward are equal (a tie), or both are of one text, or fewer than two of
its samples have a reward. Of equal rewards the first sample counts. The loss is that of stage=dpo
(`losses.preference`), divided by the pairs of an update over all ranks; a step without pairs has loss 0.
Log-probabilities are those of temperature 1 over the whole vocabulary, whatever the samples were drawn with.

rlaif/pairs         share of the prompts that gave a pair
rlaif/ties          share of the prompts whose samples, two of which have a reward at least, are all as good
rlaif/unscorable    share of the samples that take no part: without a reward, without one that others of their prompt
                    have, or cut off where these are masked
rlaif/gap           reward of the best minus that of the worst sample of a pair
preference/...      of the pairs, as in stage=dpo

Shapes: N samples of this rank, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lifecycle.batch import IGNORED, PADDING, WIDTHS, PairBatch, PromptBatch, StepBatch, TokenBatch, first_fit
from lifecycle.errors import UserError
from lifecycle.model import Decoder, DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.preference import told
from lifecycle.stages.preference.objective import Objective, StepFacts
from lifecycle.stages.preference.pairs import chosen_tokens, judged_pairs
from lifecycle.stages.preference.reference import LiveReference, Reference, WithoutAdapter
from lifecycle.stages.preference.settings import PreferenceKeys, reference_of
from lifecycle.stages.reinforcement.learning.experience import Experience, cut
from lifecycle.stages.reinforcement.settings import SamplingKeys
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step import mean_parts
from lifecycle.stages.step.collectives import sum_over_ranks


def best_and_worst(total_N: Tensor, place_N: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    """(N,) float64: 1 for the best sample of a prompt that gives a pair, -1 for the worst, 0 for the others. total: the
    reward, NaN of a sample that takes no part; place: of its prompt; texts: its tokens."""
    chosen_N = torch.zeros_like(total_N)
    for place in place_N.unique().tolist():
        there = ((place_N == place) & ~total_N.isnan()).nonzero()[:, 0]
        if not len(there):
            continue
        values = total_N[there]
        best, worst = int(there[values.argmax()]), int(there[values.argmin()])
        if total_N[best] > total_N[worst] and list(texts[best]) != list(texts[worst]):
            chosen_N[best], chosen_N[worst] = 1, -1
    return chosen_N


class PairLearner:
    """What turns the pairs of a step into updates. network: gives the policy, once it is built."""

    def __init__(
        self,
        *,
        model: ModelConfig,
        keys: PreferenceKeys,
        drawn: SamplingKeys,
        setup: Setup,
        network: Callable[[], Decoder],
    ) -> None:
        self._drawn, self._setup, self._tail = drawn, setup, keys.tail
        self._objective = Objective(keys)
        kind = reference_of(keys.reference, keys.weights, adapter=setup.adapter is not None)
        if kind is not None and setup.parent is None:
            raise UserError("the reference of online DPO is the parent, and init_from is null: type init_from=RUN")
        self.reference: Reference | None = None
        if kind is not None:
            whole = kind == "live"
            self.reference = LiveReference(config=model, setup=setup) if whole else WithoutAdapter(network)

    def learn(
        self,
        stage: Stage,
        batch: StepBatch[PromptBatch],
        experience: Experience,
        total_N: Tensor,
        facts: Mapping[str, Tensor],
    ) -> None:
        """All updates of a step. experience: the choice of `best_and_worst` is its advantage; total: the rewards;
        facts: what is told of the samples. Every rank must call."""
        parts, told_of = self._drawn.updates_per_rollout, of_choice(experience, total_N)
        updates = [self._micro_batches(stage, experience, one) for one in experience.parts(parts, stage.device)]
        sums = torch.stack([chosen_tokens(micro) for update in updates for micro in update]).sum(0)
        step = self._objective.of_step(sum_over_ranks(sums.to(stage.device)))

        def loss_sum(one: PairBatch, documents: DocumentMask | None) -> tuple[Tensor, dict[str, Tensor]]:
            return self._loss_sum(stage, one, documents, step)

        stage.take_updates(batch, updates * self._drawn.passes_per_rollout, loss_sum, told=lambda: {**facts, **told_of})

    def _loss_sum(
        self, stage: Stage, batch: PairBatch, documents: DocumentMask | None, step: StepFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses_P, measured = judged_pairs(
            stage.network,
            batch,
            documents,
            objective=self._objective,
            reference=self.reference,
            facts=step,
            tail=self._tail,
        )
        source_P = batch.tokens.source_ids.flatten()[batch.ends[0]]
        return losses_P.sum(), told.summed(measured, source_P, self._setup.source_names)

    def _micro_batches(self, stage: Stage, experience: Experience, samples: Sequence[int]) -> list[PairBatch]:
        """The pairs among some samples, in equally many micro-batches on every rank."""
        whole = PairBatch.of(*packed_pairs(experience, pairs_of(experience, samples)))
        return cut(whole, whole.tokens, most=self._setup.micro_batch_tokens, device=stage.device)


def pairs_of(experience: Experience, samples: Iterable[int]) -> list[tuple[int, int]]:
    """The best and the worst sample of each prompt that has them, in the order of the prompts."""
    sides = dict[int, dict[float, int]]()
    for n in samples:
        if experience.advantage[n]:
            sides.setdefault(int(experience.place[n]), {})[float(experience.advantage[n])] = n
    return [(sides[place][1], sides[place][-1]) for place in sorted(sides)]


def packed_pairs(experience: Experience, pairs: Sequence[tuple[int, int]]) -> tuple[TokenBatch, Tensor]:
    """Pairs in rows that hold the longest one, and a margin at every position, which none of them has. Without pairs: a
    row of padding."""
    rollout = experience.rollout
    lengths = [len(p) - 1 + int(c) for p, c in zip(rollout.prompts, rollout.length, strict=True)]
    sizes = [lengths[best] + lengths[worst] for best, worst in pairs]
    width = -(-max(sizes, default=1) // WIDTHS) * WIDTHS
    rows = first_fit(sizes, width)
    shape = (max(len(rows), 1), width)
    made = {name: np.full(shape, fill, dtype=np.int64) for name, fill in PADDING.items() if name != "shared"}
    sources = experience.sources
    for number, row in enumerate(rows):
        at = 0
        for document, n in enumerate((n for pair in row for n in pairs[pair]), start=1):
            part = (number, slice(at, at + lengths[n]))
            ids = np.array([*rollout.prompts[n], *rollout.completion(n)])
            is_trained = np.concatenate([np.zeros(len(rollout.prompts[n]), np.bool_), experience.trained[n].numpy()])
            made["input_ids"][part], made["position_ids"][part] = ids[:-1], np.arange(lengths[n])
            made["labels"][part] = np.where(is_trained[1 : len(ids)], ids[1:], IGNORED)
            made["document_ids"][part], made["source_ids"][part] = document, sources[n]
            at += lengths[n]
    tokens = TokenBatch.of({name: torch.from_numpy(array) for name, array in made.items()})
    return tokens, torch.full(shape, torch.nan, dtype=torch.float32, device="cpu")


def of_choice(experience: Experience, total_N: Tensor) -> dict[str, Tensor]:
    """(2,) sums and counts of what is told of the choice of pairs."""
    choice_N, place_N = experience.advantage, experience.place
    there_N = ~total_N.isnan()
    prompts = len(place_N.unique())
    ties = sum(
        bool((mine & there_N).sum() > 1 and total_N[mine & there_N].max() == total_N[mine & there_N].min())
        for mine in (place_N == place for place in place_N.unique())
    )
    pairs = int((choice_N > 0).sum())
    gap = float(total_N[choice_N > 0].sum() - total_N[choice_N < 0].sum())
    return {
        "rlaif/pairs": mean_parts.of_numbers(pairs, prompts),
        "rlaif/ties": mean_parts.of_numbers(ties, prompts),
        "rlaif/unscorable": mean_parts.of_numbers(int((~there_N).sum()), len(there_N)),
        "rlaif/gap": mean_parts.of_numbers(gap, pairs),
    }
