"""The reward `judge`: every criterion of a rubric is asked apart, and a sample's mark is the weighted mean.

    mark = sum of weight * (score - low) / (high - low)  /  sum of weight          from 0 to 1

A sample of which one criterion got no score has no mark: the mean of the others would be of another scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lifecycle.rewards.judge.asking import filled
from lifecycle.rewards.judge.question import JudgeQuestion
from lifecycle.rewards.judge.reading import score_of
from lifecycle.rewards.judge.settings import Criterion, JudgeKeys
from lifecycle.rewards.record import Answered


def asked_of(keys: JudgeKeys, completion: str, record: Answered) -> list[JudgeQuestion]:
    """The question of each criterion; none where the template wants a known answer and there is none."""
    if "{answer}" in keys.template and not record.answer.strip():
        return []
    texts = {"prompt": record.prompt, "completion": completion, "answer": record.answer}
    return [
        JudgeQuestion(system=keys.system, user=filled(keys.template, _places(criterion), texts))
        for criterion in keys.rubric.values()
    ]


def mark_of(keys: JudgeKeys, scores: Sequence[float | None]) -> float:
    """The mark of a sample from the score of each criterion; NaN where one is missing."""
    total = whole = 0.0
    for criterion, score in zip(keys.rubric.values(), scores, strict=True):
        if score is None:
            return math.nan
        total, whole = total + criterion.weight * criterion.share(score), whole + criterion.weight
    return total / whole


def read(criterion: Criterion, reply: str) -> float | None:
    """The score that a reply states; None where it states none."""
    return score_of(reply, low=criterion.low, high=criterion.high)


def _places(criterion: Criterion) -> Mapping[str, str]:
    return {"question": criterion.question, "low": f"{criterion.low:g}", "high": f"{criterion.high:g}"}
