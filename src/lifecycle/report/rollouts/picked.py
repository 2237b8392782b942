"""Which samples are shown: the best and the worst of each source, and the prompts whose answers changed most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from lifecycle.report.rollouts.kept import KeptRun, Mark, whole

EACH = 4
"""Best and worst samples of a source, each of another prompt."""
CHANGED = 8
"""Prompts whose answers changed most."""
COMPARED = 100
"""Prompts whose texts are compared, those with the largest change in reward."""
MOST_WORDS = 400
"""Of a text that is compared."""


@dataclass(frozen=True)
class ChangedSamples:
    """Samples of one prompt at two times, or in two runs, and the mean reward of all of them then."""

    before: Mark
    after: Mark
    reward_before: float | None
    reward_after: float | None


@dataclass(frozen=True)
class ChangedAnswer:
    """The greedy answers to a held-out question, at two times or in two runs: lines of answers.jsonl."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]


def extremes(run: KeptRun, *, best: bool) -> list[Mark]:
    """Of each source the samples of highest (lowest) reward, and of these of highest (lowest) advantage; later steps
    before earlier ones. Samples without a reward are neither."""
    sign, found = (1 if best else -1), list[Mark]()
    for source in run.sources:
        there = [mark for mark in run.marks if mark.prompt[0] == source and mark.reward is not None]
        there.sort(key=lambda mark: (-sign * (mark.reward or 0.0), -sign * mark.advantage, -mark.step, mark.place))
        prompts = dict[object, Mark]()
        for mark in there:
            prompts.setdefault(mark.prompt, mark)
        found += list(prompts.values())[:EACH]
    return found


def changed(run: KeptRun, other: KeptRun | None = None) -> list[ChangedSamples]:
    """Prompts that were asked in two steps, or, with another run, in both: first and last time, or the last of each."""
    pairs = list[tuple[list[Mark], list[Mark]]]()
    for prompt, visits in run.visits.items():
        if other is None:
            if len(visits) > 1:
                pairs.append((visits[min(visits)], visits[max(visits)]))
        elif prompt in other.visits:
            theirs = other.visits[prompt]
            pairs.append((theirs[max(theirs)], visits[max(visits)]))
    made = [ChangedSamples(typical(a), typical(b), mean(a), mean(b)) for a, b in pairs]
    made.sort(key=_moved, reverse=True)
    first = [(one, _texts(one)) for one in made[:COMPARED]]
    first.sort(key=lambda one: (_moved(one[0]), difference(*one[1])), reverse=True)
    return [one for one, (a, b) in first if a != b or _moved(one)][:CHANGED]


def changed_answers(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> tuple[list[ChangedAnswer], dict[str, int]]:
    """Held-out questions whose greedy answer changed most: first those that became right or wrong, in turn; and how
    many `asked`, `gained`, `lost`."""
    then = {(one["domain"], one["prompt"]): one for one in before}
    pairs = [ChangedAnswer(then[key], one) for one in after if (key := (one["domain"], one["prompt"])) in then]
    gained = [one for one in pairs if one.after["right"] and not one.before["right"]]
    lost = [one for one in pairs if one.before["right"] and not one.after["right"]]
    rest = [
        one
        for one in pairs
        if one.before["right"] == one.after["right"] and one.before["completion"] != one.after["completion"]
    ]
    for some in (gained, lost, rest):
        some.sort(key=lambda one: -difference(one.before["completion"], one.after["completion"]))
    flips = [one for pair in zip(gained, lost, strict=False) for one in pair]
    count = min(len(gained), len(lost))
    chosen = [*flips, *gained[count:], *lost[count:], *rest][:CHANGED]
    counts = {"asked": len(pairs), "gained": 0, "lost": 0}
    for one in pairs:
        counts["gained"] += bool(one.after["right"] and not one.before["right"])
        counts["lost"] += bool(one.before["right"] and not one.after["right"])
    return chosen, counts


def typical(marks: Sequence[Mark]) -> Mark:
    """The sample whose reward is nearest to the mean of all; the first where none has a reward."""
    middle = mean(marks)

    def apart(mark: Mark) -> float:
        return math.inf if mark.reward is None or middle is None else abs(mark.reward - middle)

    return min(marks, key=lambda mark: (apart(mark), mark.sample))


def mean(marks: Iterable[Mark]) -> float | None:
    """Of the rewards that there are."""
    there = [mark.reward for mark in marks if mark.reward is not None]
    return sum(there) / len(there) if there else None


def difference(one: str, other: str) -> float:
    """From 0 for the same words to 1 where no word is shared."""
    return 1 - SequenceMatcher(None, one.split()[:MOST_WORDS], other.split()[:MOST_WORDS], autojunk=False).ratio()


def _moved(one: ChangedSamples) -> float:
    """By how much the reward changed; 0 where it is not known of both."""
    if one.reward_before is None or one.reward_after is None:
        return 0.0
    return abs(one.reward_after - one.reward_before)


def _texts(one: ChangedSamples) -> tuple[str, str]:
    before, after = whole(one.before), whole(one.after)
    return str(before["completion"]), str(after["completion"])
