"""The reward `preferred`: samples of a prompt are compared in pairs, each in both orders; the mark is the share won.

    A before B says A, B before A says A       A won
    one says A and the other B, or a tie       a tie: half a win for each
    one of the two cannot be read              the pair is not counted; a sample without a pair has no mark

A sample that is alone, as a greedy answer to a held-out prompt, is compared with the known answer, where there is one.

Pairs of n samples, in an order drawn for the prompt: neighbours on a ring first, then samples two apart, and so on, so
that samples are in equally many pairs, or in one more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lifecycle.rewards.judge.asking import filled
from lifecycle.rewards.judge.question import JudgeQuestion
from lifecycle.rewards.judge.reading import Better
from lifecycle.rewards.judge.settings import JudgeKeys
from lifecycle.rewards.record import Answered
from lifecycle.system.seeds import derive

Pair = tuple[int, int]
"""Numbers of two samples."""
KNOWN = -1
"""In a pair: the known answer."""


def seed_of(seed: int, prompt: int) -> int:
    """By which the pairs of a prompt are chosen. seed: of the run. prompt: its number in the run."""
    return derive(seed, "pairs", prompt)


def pairs_of(samples: int, *, most: int, seed: int) -> list[Pair]:
    """At most so many pairs of samples; `seed` decides which."""
    order = sorted(range(samples), key=lambda i: derive(seed, "pair", i))
    pairs = list[Pair]()
    for apart in range(1, samples // 2 + 1):
        ring = [(n, (n + apart) % samples) for n in range(samples)]
        ring = ring[: samples // 2] if 2 * apart == samples else ring
        # first those that touch no sample twice, so that a cut falls evenly
        ring.sort(key=lambda pair: pair[0] // apart % 2)
        pairs += [(order[a], order[b]) for a, b in ring]
    return pairs[:most]


def asked_of(keys: JudgeKeys, first: str, second: str, record: Answered) -> list[JudgeQuestion]:
    """The two questions of a pair; none where the two are equal, or the template wants a known answer and there is
    none."""
    if first == second or ("{answer}" in keys.pair_template and not record.answer.strip()):
        return []
    plain = {"question": keys.pair_question}
    return [
        JudgeQuestion(
            system=keys.system,
            user=filled(keys.pair_template, plain, {"prompt": record.prompt, "a": a, "b": b, "answer": record.answer}),
        )
        for a, b in ((first, second), (second, first))
    ]


def won_by(forward: Better | None, backward: Better | None) -> float | None:
    """What the first of a pair won, 1, 0 or half, from the replies in both orders; None where one is missing."""
    if forward is None or backward is None:
        return None
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((forward, backward), 0.5)


def shares(samples: Sequence[int], won: Mapping[Pair, float | None]) -> dict[int, float]:
    """The share that each sample won of its pairs; NaN where none was counted. won: what the first of each pair won."""
    of: dict[int, list[float]] = {sample: [] for sample in [*samples, KNOWN]}
    for (first, second), share in won.items():
        if share is not None:
            of[first].append(share)
            of[second].append(1 - share)
    return {sample: sum(of[sample]) / len(of[sample]) if of[sample] else math.nan for sample in samples}
