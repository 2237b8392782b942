"""Which prompts of a step are sampled, and which of them are trained on.

    drop_solved        a prompt whose samples all had the full reward when it was last asked is not asked again
    varying_prompts    prompts are sampled in parts until so many have samples that differ in their reward; these are
                       trained on, and the others, which teach nothing, are not (DAPO's dynamic sampling, 2503.14476)

Parts are made by the places of prompts in the step, and counted over all ranks, so that both follow from the step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.batch.prompts import PLACES
from lifecycle.losses.policy.advantages import varying_groups
from lifecycle.stages.reinforcement.acting.scoring import SampleScores
from lifecycle.stages.reinforcement.acting.told import of_rollout
from lifecycle.stages.reinforcement.learning.experience import of_all_ranks, place_of
from lifecycle.stages.step import mean_parts
from lifecycle.stages.step.collectives import gather_values
from lifecycle.system.seeds import derive

Sampled = tuple[PromptBatch, Rollout, SampleScores]
"""Prompts, their samples, and what these are worth."""


class Solved:
    """The prompts that were solved, which every checkpoint holds."""

    def __init__(self, *, drops: bool) -> None:
        self._drops, self._solved = drops, set[int]()

    def without(self, prompts: PromptBatch) -> PromptBatch:
        """The prompts that are not solved."""
        if not self._drops:
            return prompts
        return prompts.at(i for i, key in enumerate(keys_of(prompts)) if key not in self._solved)

    def note(self, sampled: Sampled, device: torch.device) -> None:
        """Of every prompt, whether all its samples have the full reward. Every rank must call."""
        if not self._drops:
            return
        prompts, rollout, scores = sampled
        full = dict.fromkeys(prompts.number.tolist(), True)
        for number, total in zip(rollout.prompt_id.tolist(), scores.is_full.tolist(), strict=True):
            full[number] &= total
        keys = [key for key, number in zip(keys_of(prompts), full, strict=True) if full[number]]
        mine = torch.tensor(keys, dtype=torch.long, device=device)
        self._solved |= set(gather_values(mine).tolist())

    def state(self) -> list[int]:
        """For the checkpoint."""
        return sorted(self._solved)

    def restore(self, state: list[int] | None) -> None:
        """Go on from `state`."""
        self._solved = set(state or [])


def sampled(
    prompts: PromptBatch,
    draw: Callable[[PromptBatch], tuple[Rollout, SampleScores]],
    *,
    prompts_per_step: int,
    varying_prompts: int | None,
    device: torch.device,
) -> tuple[Sampled, dict[str, Tensor]]:
    """The samples that are trained on, and (2,) sums and counts of what is told of all that were drawn. Every rank must
    call."""
    wanted = varying_prompts or prompts_per_step
    parts = -(-prompts_per_step // wanted)
    place = prompts.number % PLACES
    kept, told, found = list[Sampled](), dict[str, Tensor](), 0
    for number in range(parts):
        part = prompts.at((place % parts == number).nonzero()[:, 0].tolist())
        rollout, scores = draw(part)
        for name, value in of_rollout(rollout, scores).items():
            told[name] = told.get(name, 0) + value
        if varying_prompts is None:
            return (part, rollout, scores), told
        chosen, count = _varying(scores, most=wanted - found, device=device)
        found += count
        kept.append(_only(part, rollout, scores, chosen))
        if found == wanted:
            break
    joined = (
        PromptBatch.joined(k[0] for k in kept),
        Rollout.joined([k[1] for k in kept]),
        SampleScores.joined([k[2] for k in kept]),
    )
    told["rollout/prompts_kept"] = mean_parts.of_numbers(found)
    return joined, told


def _varying(scores: SampleScores, *, most: int, device: torch.device) -> tuple[list[int], int]:
    """The places of this rank's groups that vary, of the first `most` of all ranks; and how many these are."""
    (compared_S, place_S), _ = of_all_ranks([scores.compared_by, scores.place], device)
    places, group_S = place_S.unique(return_inverse=True)
    chosen = places[varying_groups(compared_S, group_S)].tolist()[:most]
    mine = set(scores.place.tolist())
    return [place for place in chosen if place in mine], len(chosen)


def _only(prompts: PromptBatch, rollout: Rollout, scores: SampleScores, places: list[int]) -> Sampled:
    wanted = torch.tensor(places, dtype=torch.long, device="cpu")
    of_prompt = torch.isin(prompts.number % PLACES, wanted).nonzero()[:, 0].tolist()
    of_sample = torch.isin(place_of(rollout), wanted).nonzero()[:, 0].tolist()
    return prompts.at(of_prompt), rollout.rows(of_sample), scores.rows(of_sample)


def keys_of(prompts: PromptBatch) -> list[int]:
    """A number of each prompt by its record; equal questions of two records are two prompts."""
    return [derive(0, "prompt", int(s), name) for s, name in zip(prompts.source_ids, prompts.id, strict=True)]
