"""Marks of a rollout's samples by a judge: all questions of all samples are asked at once, then read.

samples -> questions: each criterion of a sample (`judge`), each order of a pair (`preferred`) -> replies -> marks
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from lifecycle.rewards.judge import pairs, rubric
from lifecycle.rewards.judge.question import Answering, JudgeQuestion, NoReply, Outcome
from lifecycle.rewards.judge.reading import Better, better_of
from lifecycle.rewards.judge.settings import JudgeKeys
from lifecycle.rewards.record import Answered

T = TypeVar("T")
JUDGE, PREFERRED = "judge", "preferred"
JUDGED = (JUDGE, PREFERRED)
"""Rewards that are verdicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A sample that is to be judged. prompt: its number, by which pairs are made and chosen. by: which of `JUDGED` it
    is to have."""

    completion: str
    record: Answered
    prompt: int
    by: frozenset[str]


@dataclass(kw_only=True)
class Verdicts:
    """marks: of each sample by reward, 0 to 1; NaN: none. lost: by reward, whether a sample has none though it was
    asked about; failed: how many of them. asked: questions; answered: of these, those with a reply; unreadable: replies
    that state no verdict; over: questions that were not asked, as no more may be spent. shares: by criterion, sum and
    number of its marks. why: what the first failure said. unread: the first reply that states no verdict."""

    marks: dict[str, list[float]]
    lost: dict[str, list[bool]]
    failed: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    answered: int = 0
    unreadable: int = 0
    over: int = 0
    shares: dict[str, tuple[float, int]] = field(default_factory=dict)
    why: str = ""
    unread: str = ""

    def read(self, outcome: Outcome, how: Callable[[str], T | None]) -> T | None:
        """What a reply states, read by `how`; None where there is none, which is counted."""
        self.asked += 1
        if isinstance(outcome, NoReply):
            self.why, self.over = self.why or outcome.why, self.over + outcome.over
            return None
        self.answered += 1
        found = how(outcome.text) if outcome.whole else None
        if found is None:
            self.unreadable += 1
            self.unread = self.unread or (outcome.text if outcome.whole else f"{outcome.text} (cut off)")
        return found

    def mark(self, name: str, sample: int, mark: float) -> None:
        """Of a sample that was asked about."""
        self.marks[name][sample] = mark
        self.lost[name][sample] = math.isnan(mark)
        self.failed[name] += math.isnan(mark)


def verdicts(keys: JudgeKeys, judge: Answering, samples: Sequence[Judged], *, seed: int) -> Verdicts:
    """The marks of samples. seed: of the run, by which pairs are chosen. Every rank calls, once for a rollout."""
    alone = {
        s: rubric.asked_of(keys, sample.completion, sample.record)
        for s, sample in enumerate(samples)
        if JUDGE in sample.by
    }
    groups = list(_groups(keys, samples, seed))
    texts = {
        (a, b): (samples[a].completion, samples[a].record.answer if b == pairs.KNOWN else samples[b].completion)
        for _, chosen in groups
        for a, b in chosen
    }
    paired = {pair: pairs.asked_of(keys, *both, samples[pair[0]].record) for pair, both in texts.items()}
    questions: list[JudgeQuestion] = [one for asked in (*alone.values(), *paired.values()) for one in asked]
    outcomes = iter(judge.replies(questions))
    found = Verdicts(
        marks={name: [math.nan] * len(samples) for name in JUDGED},
        lost={name: [False] * len(samples) for name in JUDGED},
    )
    for s, asked in alone.items():
        if asked:
            found.mark(JUDGE, s, _mark(keys, found, outcomes))
    won = {
        pair: _won(found, outcomes) if asked else (0.5 if len({*texts[pair]}) == 1 else None)
        for pair, asked in paired.items()
    }
    for members, chosen in groups:
        shares = pairs.shares(members, {pair: won[pair] for pair in chosen})
        for s, share in shares.items():
            found.mark(PREFERRED, s, share)
    return found


def _groups(keys: JudgeKeys, samples: Sequence[Judged], seed: int) -> Iterator[tuple[list[int], list[pairs.Pair]]]:
    """Of each prompt, those samples that are to be compared, and the pairs of them."""
    members: dict[int, list[int]] = defaultdict(list)
    for s, sample in enumerate(samples):
        if PREFERRED in sample.by:
            members[sample.prompt].append(s)
    for prompt, own in members.items():
        if len(own) == 1 and samples[own[0]].record.answer.strip():
            yield own, [(own[0], pairs.KNOWN)]
        elif len(own) > 1:
            chosen = pairs.pairs_of(len(own), most=keys.pairs_per_prompt, seed=pairs.seed_of(seed, prompt))
            yield own, [(own[a], own[b]) for a, b in chosen]


def _mark(keys: JudgeKeys, found: Verdicts, outcomes: Iterator[Outcome]) -> float:
    """The mark of a sample from the replies to its questions, which come next."""
    scores = list[float | None]()
    for name, criterion in keys.rubric.items():
        score = found.read(next(outcomes), partial(rubric.read, criterion))
        scores.append(score)
        if score is not None:
            total, count = found.shares.get(name, (0.0, 0))
            found.shares[name] = total + criterion.share(score), count + 1
    return rubric.mark_of(keys, scores)


def _won(found: Verdicts, outcomes: Iterator[Outcome]) -> float | None:
    """What the first of a pair won, from the replies to its two questions, which come next."""
    replies: list[Better | None] = [found.read(next(outcomes), better_of) for _ in range(2)]
    return pairs.won_by(*replies)
