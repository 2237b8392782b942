"""A judge behind an endpoint: what it was asked before is read from the cache, the rest is asked and paid for.

questions -> equal ones once -> cache -> endpoint, until max_cost -> cache, spending
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lifecycle.rewards.judge.endpoint import Endpoint
from lifecycle.rewards.judge.kept import KeptReplies, PaidBy, key_of
from lifecycle.rewards.judge.question import JudgeQuestion, NoReply, Outcome, Reply
from lifecycle.rewards.judge.settings import JudgeKeys
from lifecycle.rewards.judge.spending import Spending

NOT_PAID = NoReply(why="not asked: stage.judge.max_cost was reached", over=True)


class RemoteJudge:
    """folder: of the cache. run: names the folder of the run, whose costs are counted. Raises UserError where its key
    is not there."""

    def __init__(self, keys: JudgeKeys, *, folder: Path, run: str) -> None:
        self._keys, self._run = keys, run
        self._endpoint, self._kept = Endpoint(keys), KeptReplies(folder / _folder_of(keys))
        self.spent = Spending(price_in=keys.price_in, price_out=keys.price_out)

    def replies(self, questions: Sequence[JudgeQuestion]) -> list[Outcome]:
        """The outcome of each question. Those that are asked for what reaches `max_cost` are the last."""
        paid_by = PaidBy(run=self._run, call=self.spent.calls)
        names = [self._name(question) for question in questions]
        found, unknown = dict[str, Outcome](), dict[str, JudgeQuestion]()
        for name, question in zip(names, questions, strict=True):
            if name in found or name in unknown:
                continue
            if (known := self._kept.get(name, paid_by)) is None:
                unknown[name] = question
                continue
            found[name], paid = known
            if paid:
                self._pay(known[0])
        if self.over:
            found |= {name: NOT_PAID for name in unknown}
        elif unknown:
            found |= self._asked(unknown, paid_by)
        return [found[name] for name in names]

    @property
    def over(self) -> bool:
        """Whether it has cost what it may."""
        return self._keys.max_cost is not None and self.spent.cost >= self._keys.max_cost

    @property
    def place(self) -> str:
        """Its address and its name there."""
        return f"{self._keys.model} at {self._endpoint.url}"

    def _asked(self, questions: Mapping[str, JudgeQuestion], paid_by: PaidBy) -> dict[str, Outcome]:
        names = list(questions)

        def note(number: int, reply: Reply) -> bool:
            self._kept.put(names[number], reply, paid_by)
            self._pay(reply)
            return not self.over  # those on their way are waited for

        outcomes = self._endpoint.replies([*questions.values()], note)
        self._kept.settle()
        found = {name: NOT_PAID if one is None else one for name, one in zip(names, outcomes, strict=True)}
        return found

    def _pay(self, reply: Reply) -> None:
        self.spent.add(reply.tokens_in, reply.tokens_out)

    def _name(self, question: JudgeQuestion) -> str:
        assert self._keys.model is not None
        return key_of(question, model=self._keys.model, version=self._keys.version, sampling=self._keys.sampling)


def _folder_of(keys: JudgeKeys) -> str:
    """Of the replies of one model by one name: a start reads no others."""
    assert keys.model is not None
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", keys.model)[:40].strip(".-") or "judge"
    return f"{plain}-{hashlib.sha256(json.dumps([keys.model, keys.version]).encode()).hexdigest()[:8]}"
