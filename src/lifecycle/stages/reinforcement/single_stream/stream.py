"""A stream of single answers: candidates of a step -> trackers of new ones -> choice -> what an answer teaches of its
prompt.

    spo/value           what the chosen prompts were expected to give
    spo/distance        how far the policy has moved since the last answers to them: D
    spo/kept            how much of their past was kept: rho
    spo/rewards_vary    1 where the answers of the step differ in their reward, else 0
    spo/prompts         prompts that are known
    spo/start_samples   completions of the step that were drawn to start trackers; they are samples like all others

Shapes: P prompts of this rank, S of all ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.batch.prompts import PLACES
from lifecycle.bounds import Bounds, Count, Positive
from lifecycle.losses.policy.spo import (
    SpoVariant,
    distances,
    kept_share,
    prompt_weights,
    started,
    updated,
)
from lifecycle.stages.base import Stage
from lifecycle.stages.reinforcement.acting.actor import Phases
from lifecycle.stages.reinforcement.acting.choice_of_prompts import keys_of
from lifecycle.stages.reinforcement.acting.sampler import PolicySampler
from lifecycle.stages.reinforcement.acting.scoring import SampleScores, Scoring
from lifecycle.stages.reinforcement.learning.experience import Experience, of_all_ranks, prompt_of
from lifecycle.stages.reinforcement.learning.learner import Learner
from lifecycle.stages.reinforcement.single_stream import last_answers
from lifecycle.stages.reinforcement.single_stream.choice import drawn
from lifecycle.stages.reinforcement.single_stream.last_answers import NONE, as_rollout, of_rollout
from lifecycle.stages.reinforcement.single_stream.trackers import Trackers
from lifecycle.stages.step import mean_parts

STARTING = "start trackers"
"""Of the seeds of the draws that start trackers."""


@dataclass(frozen=True, kw_only=True)
class StreamKeys:
    """variant: start value and distance, see `losses.policy.spo`. chosen_per_step: prompts that are trained on, of the
    step's. start_samples: completions of a prompt that start its tracker. half_life: nats that halve the past."""

    variant: SpoVariant
    chosen_per_step: Count
    start_samples: Annotated[int, Bounds(least=0)]
    half_life: Positive


class SingleStream:
    """Trackers, and what moves them."""

    def __init__(self, keys: StreamKeys, sampler: PolicySampler) -> None:
        self._keys, self._sampler = keys, sampler
        self.trackers = Trackers()

    def chosen(
        self, stage: Stage, scoring: Scoring, prompts: PromptBatch, step: int, phases: Phases
    ) -> tuple[PromptBatch, dict[str, Tensor]]:
        """This rank's prompts of those that are trained on, numbered anew from 0 over all ranks; and what is told of
        them. Of a record that stands in the step twice, the first counts. phases: the clock of the step. Every rank
        must call."""
        first = dict[int, int]()
        (key_S, place_S), _ = of_all_ranks([_tensor(keys_of(prompts)), prompts.number % PLACES], stage.device)
        for place, key in sorted(zip(place_S.tolist(), key_S.tolist(), strict=True)):
            first.setdefault(key, place)
        told = self._start(stage, scoring, _at_places(prompts, first.values()), first, step, phases)
        value_S = self.trackers.of(list(first)).value_P
        keys = drawn(
            list(first),
            prompt_weights(value_S),
            most=self._keys.chosen_per_step,
            seed=stage.setup_facts.seed,
            step=step,
        )
        places = sorted(first[key] for key in keys)
        mine = _at_places(prompts, places)
        order = _tensor([places.index(place) for place in (mine.number % PLACES).tolist()])
        mine = replace(mine, number=step * PLACES + order)
        told["spo/value"] = mean_parts.of_values(self.values(mine))
        return mine, told

    def vary(self, stage: Stage, reward_P: Tensor) -> dict[str, Tensor]:
        """Whether the answers of the step differ in their reward, over all ranks. Every rank must call."""
        (reward_S,), _ = of_all_ranks([reward_P], stage.device)
        there_S = reward_S[~reward_S.isnan()]
        return {"spo/rewards_vary": mean_parts.of_numbers(float((there_S != there_S[:1]).any()))}

    def values(self, prompts: PromptBatch) -> Tensor:
        """(P,) fp64, what each is expected to give."""
        return self.trackers.of(keys_of(prompts)).value_P

    def note(
        self, stage: Stage, learner: Learner, prompts: PromptBatch, rollout: Rollout, reward_P: Tensor
    ) -> dict[str, Tensor]:
        """What the answers teach of their prompts, with the policy as it stands; `rollout` and `reward_P` in the order
        of `prompts`. Every rank must call."""
        keys = keys_of(prompts)
        distance_P = self._distances(stage, learner, prompts, keys)
        kept_P = kept_share(distance_P, half_life=self._keys.half_life)
        (key_S, reward_S, kept_S), _ = of_all_ranks([_tensor(keys), reward_P, kept_P], stage.device)
        answers = last_answers.of_all_ranks(of_rollout(rollout), stage.device)
        every = key_S.tolist()
        self.trackers.note(every, updated(self.trackers.of(every), reward_S, kept_S), answers)
        return {"spo/distance": mean_parts.of_values(distance_P), "spo/kept": mean_parts.of_values(kept_P)}

    def _distances(self, stage: Stage, learner: Learner, prompts: PromptBatch, keys: Sequence[int]) -> Tensor:
        """(P,) fp64, D."""
        rollout = as_rollout(self.trackers.last(keys), prompts.number)
        own_P = torch.arange(len(prompts), dtype=torch.float32, device="cpu")
        # an advantage stands beside every token: here it says whose the token is
        asked = Experience.of(prompts, rollout, own_P, mask_unfinished=False)
        parts = [
            (now.cpu(), one.sampler_logp.cpu(), one.advantage.cpu()) for one, now in learner.said_now(stage, asked)
        ]
        now_N, then_N, own_N = (torch.cat(part) for part in zip(*parts, strict=True))
        return distances(now_N, then_N, own_N.long(), prompts=len(prompts), variant=self._keys.variant)

    def _start(
        self,
        stage: Stage,
        scoring: Scoring,
        prompts: PromptBatch,
        keys: Collection[int],
        step: int,
        phases: Phases,
    ) -> dict[str, Tensor]:
        """Trackers of the prompts that are not known. keys: of all ranks."""
        new = [i for i, key in enumerate(keys_of(prompts)) if key not in self.trackers]
        count = sum(key not in self.trackers for key in keys)
        samples = self._keys.start_samples
        if count:
            part = prompts.at(new)
            reward_P = there_P = torch.zeros(len(part), dtype=torch.float64, device="cpu")
            answers = [NONE] * len(part)
            if samples:
                with phases.of("sampling"):
                    rollout = self._sampler.apart(part, stage.network, step=step, samples=samples, purpose=STARTING)
                with phases.of("grading"):
                    reward_N = in_bounds(scoring.scores(stage, rollout, part))
                phases.tokens += int(rollout.length.sum())
                reward_P, there_P = _by_prompt(reward_N, prompt_of(rollout, part), len(part))
                firsts = {i: n for n, i in reversed(list(enumerate(prompt_of(rollout, part))))}
                answers = of_rollout(rollout.rows([firsts[i] for i in range(len(part))]))
            (key_S, reward_S, there_S), _ = of_all_ranks([_tensor(keys_of(part)), reward_P, there_P], stage.device)
            tracker = started(reward_S, there_S, variant=self._keys.variant)
            every = last_answers.of_all_ranks(answers, stage.device)
            self.trackers.begin(key_S.tolist(), tracker, every, samples=count * samples)
        return {
            "spo/prompts": mean_parts.of_numbers(len(self.trackers)),
            "spo/start_samples": mean_parts.of_numbers(count * samples),
        }


def in_bounds(scores: SampleScores) -> Tensor:
    """(N,) fp64: what each sample is worth; what rounding has put above 1 is 1."""
    worth_N = scores.worth
    return torch.where((worth_N > 1) & (worth_N < 1 + 1e-9), torch.ones_like(worth_N), worth_N)


def in_order(rollout: Rollout, scores: SampleScores, prompts: PromptBatch) -> tuple[Rollout, SampleScores]:
    """The samples, one of each prompt, in the order of the prompts."""
    of = prompt_of(rollout, prompts)
    order = sorted(range(len(of)), key=of.__getitem__)
    return rollout.rows(order), scores.rows(order)


def _by_prompt(reward_N: Tensor, prompt_N: Sequence[int], prompts: int) -> tuple[Tensor, Tensor]:
    """(P,) fp64 each: the sum of the rewards that there are, and how many there are."""
    at, zeros_P = _tensor(prompt_N), torch.zeros(prompts, dtype=torch.float64, device="cpu")
    there_N = ~reward_N.isnan()
    return zeros_P.index_add(0, at, reward_N.nan_to_num(nan=0.0)), zeros_P.index_add(0, at, there_N.double())


def _at_places(prompts: PromptBatch, places: Iterable[int]) -> PromptBatch:
    wanted = set(places)
    return prompts.at(i for i, place in enumerate((prompts.number % PLACES).tolist()) if place in wanted)


def _tensor(values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long, device="cpu")
