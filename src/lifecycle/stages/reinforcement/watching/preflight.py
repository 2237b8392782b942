"""Samples of the policy as it stands, before its first update: whether there is anything to learn from.

The prompts are the first of the run, read beside it, so that its place in the data stays; their draws have seeds of
their own, so that no later draw is another one. The same prompts and draws on any number of ranks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lifecycle.batch import Cursor, PromptBatch, Rollout
from lifecycle.losses.policy.advantages import varying_groups
from lifecycle.rewards.interval import pass_at
from lifecycle.stages.base import Stage
from lifecycle.stages.reinforcement.acting.actor import Actor
from lifecycle.stages.reinforcement.acting.scoring import SampleScores
from lifecycle.stages.reinforcement.learning.experience import finished, of_all_ranks, prompt_of
from lifecycle.stages.step.collectives import gather_values, sum_over_ranks

PURPOSE = "preflight"
"""Of the seeds of its draws."""
CUT_OFF, ENDED, WORST, BEST = "cut off", "ended by itself", "worst", "best"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One of the samples. why: best, worst, or cut off. ending: how it ended."""

    why: str
    prompt: str
    completion: str
    reward: float | None
    answer: str | None
    ending: str


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found, over all ranks; shown: of the first rank.

    prompts, samples: how many, and of each. stopped: share of the samples that came to their own end. stated: by
    reward, the share in which the grader found an answer; a reward that marks any text is not there. marked: share of
    the samples that have a reward. reward: the mean of these. right: pass@1 and pass@`samples`; None where no grader
    knows the answer. varying: share of the prompts whose samples differ in their reward, None of single samples; full:
    of those whose samples all have the most. length, longest: tokens of a completion in the mean, and of the longest.
    failed, timed_out, said: by reward, how often a grader failed, or took too long, and what the first failure said.
    too_long: by source, the share of its rows that was left out for its length. seconds: that this took; step_seconds:
    of sampling and marking in a step, by its number of samples.
    """

    prompts: int
    samples: int
    stopped: float
    stated: dict[str, float]
    marked: float
    reward: float | None
    right: tuple[float, float] | None
    varying: float | None
    full: float
    length: float
    longest: int
    failed: dict[str, int]
    timed_out: dict[str, int]
    said: dict[str, str]
    too_long: dict[str, float]
    seconds: float
    step_seconds: float
    shown: list[Shown] = field(default_factory=list)


@torch.no_grad()
def look(stage: Stage, actor: Actor) -> Preflight | None:
    """Sample, mark and count; None where there is no prompt. Every rank must call."""
    keys, began = actor.graded.preflight, time.perf_counter()
    prompts, cursor = first_prompts(stage, keys.prompts)
    if prompts is None:
        return None
    if stage.beside is not None:  # a network may mark
        stage.beside.begin(stage.device, stage.feed)
    read_at = time.perf_counter()
    stage.enter(0)
    stage.network.eval()
    with stage.trainer.precision_plugin.forward_context():
        rollout = actor.sampler.apart(prompts, stage.network, step=0, samples=keys.samples, purpose=PURPOSE)
        scores = actor.scoring.scores(stage, rollout, prompts)
    stage.network.train()
    actor.scoring.told()  # what it tells is of no step
    sampled_in = time.perf_counter() - read_at
    of_samples = _gathered(rollout, scores, stage.device)
    step = stage.setup_facts.timeline.at(0)
    asked = len(of_samples["total"])
    return Preflight(
        samples=keys.samples,
        **_counted(of_samples),
        stated=_stated(actor.scoring.stated(stage, rollout, prompts), stage.device),
        failed=_summed(scores.failed, scores.names, stage.device),
        timed_out=_summed(scores.timed_out, scores.names, stage.device),
        said=dict(scores.said),
        too_long=_too_long(stage, cursor),
        seconds=time.perf_counter() - began,
        step_seconds=sampled_in * step.rows * step.samples / max(1, asked),
        shown=_shown(stage, rollout, scores, prompts),
    )


def first_prompts(stage: Stage, most: int) -> tuple[PromptBatch | None, Cursor | None]:
    """This rank's of the first `most` prompts of the run, and how far they were read; None where there is none."""
    parts, last, count = list[PromptBatch](), None, 0
    with closing(stage.feed.whole_run()) as batches:
        for batch in batches:
            parts += batch.micro
            last = batch.cursor
            count += int(sum_over_ranks(torch.tensor([sum(map(len, batch.micro))], device=stage.device)))
            if count >= most:
                break
    if not count:
        return None, last
    mine = PromptBatch.joined(parts)
    number_P = gather_values(mine.number.to(stage.device)).sort().values.cpu()
    end = int(number_P[min(most, count) - 1])
    return mine.at((mine.number <= end).nonzero()[:, 0].tolist()), last


def _gathered(rollout: Rollout, scores: SampleScores, device: torch.device) -> dict[str, Tensor]:
    """By name, a number of each sample of all ranks."""
    ended = torch.tensor(finished(rollout), dtype=torch.float64, device="cpu")
    mine = {
        "prompt": rollout.prompt_id,
        "total": scores.total,
        "compared": scores.compared_by,
        "worth": scores.worth,
        "right": scores.right,
        "full": scores.is_full.double(),
        "stopped": ended,
        "length": rollout.length.double(),
    }
    found, _ = of_all_ranks(list(mine.values()), device)
    return dict(zip(mine, found, strict=True))


def _counted(of: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `Preflight` says of the samples."""
    _, group_S = of["prompt"].unique(return_inverse=True)
    groups, marked = int(group_S.max()) + 1, ~of["total"].isnan()
    worth = of["worth"][~of["worth"].isnan()]
    most = len(group_S) // groups
    full_G = torch.ones(groups, dtype=torch.float64, device="cpu").scatter_reduce(0, group_S, of["full"], "amin")
    return {
        "prompts": groups,
        "stopped": float(of["stopped"].mean()),
        "marked": float(marked.double().mean()),
        "reward": float(worth.mean()) if len(worth) else None,
        "right": _right(of["right"], group_S, groups, most),
        "varying": float(varying_groups(of["compared"], group_S).double().mean()) if most > 1 else None,
        "full": float(full_G.mean()),
        "length": float(of["length"].mean()),
        "longest": int(of["length"].max()),
    }


def _right(right_S: Tensor, group_S: Tensor, groups: int, samples: int) -> tuple[float, float] | None:
    """pass@1 and pass@samples, over the prompts whose samples are all marked."""
    zero = torch.zeros(groups, dtype=torch.float64, device="cpu")
    count_G = zero.index_add(0, group_S, (~right_S.isnan()).double())
    right_G = zero.index_add(0, group_S, right_S.nan_to_num(0.0))[count_G == samples]
    if not len(right_G):
        return None
    by_count = torch.bincount(right_G.long(), minlength=samples + 1).tolist()
    return pass_at(1, by_count), pass_at(samples, by_count)


def _stated(found: Mapping[str, Tensor], device: torch.device) -> dict[str, float]:
    """By reward, the share of the completions in which its grader finds an answer, of those that it was asked for."""
    if not found:
        return {}
    stated_SR = torch.stack(list(found.values()), 1)
    sums = torch.stack([stated_SR.nan_to_num(0.0).sum(0), (~stated_SR.isnan()).double().sum(0)])
    shares = sum_over_ranks(sums.to(device)).tolist()
    return {name: of / count for name, of, count in zip(found, *shares, strict=True) if count}


def _summed(counts: Mapping[str, int], names: list[str], device: torch.device) -> dict[str, int]:
    """By reward, over all ranks."""
    once = list(dict.fromkeys(names))
    totals = sum_over_ranks(torch.tensor([counts.get(name, 0) for name in once], device=device)).tolist()
    return dict(+Counter(dict(zip(once, totals, strict=True))))


def _too_long(stage: Stage, cursor: Cursor | None) -> dict[str, float]:
    if cursor is None:
        return {}
    names = stage.setup_facts.source_names
    rows = sum_over_ranks(stage.feed.too_long(cursor).to(stage.device)).tolist()
    return {name: left_out / kept for name, (left_out, kept) in zip(names, rows, strict=True) if left_out}


def _shown(stage: Stage, rollout: Rollout, scores: SampleScores, prompts: PromptBatch) -> list[Shown]:
    """The best, the worst, and one that was cut off, of this rank, each sample once; of those without a reward only
    where there are no others."""
    worth, ended = scores.worth.tolist(), finished(rollout)
    ranked = sorted((n for n, one in enumerate(worth) if one == one), key=lambda n: -worth[n]) or [*range(len(worth))]
    chosen = dict(zip((BEST, WORST), dict.fromkeys([*ranked[:1], *ranked[-1:]]), strict=False))
    others = [n for n, one in enumerate(ended) if not one and n not in chosen.values()]
    if others:
        chosen[CUT_OFF] = others[0]
    index, tokenizer = prompt_of(rollout, prompts), stage.setup_facts.tokenizer
    assert tokenizer is not None
    return [
        Shown(
            why=why,
            prompt=tokenizer.decode(prompts.ids[index[n]], specials=True),
            completion=tokenizer.decode(rollout.completion(n), specials=True),
            reward=None if worth[n] != worth[n] else worth[n],
            answer=prompts.answer[index[n]],
            ending=ENDED if ended[n] else CUT_OFF,
        )
        for why, n in chosen.items()
    ]
