"""What is asked of a judge, and what comes of it: a reply, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lifecycle.rewards.judge.spending import Spending


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeQuestion:
    """Two messages. system: of the one that comes first; empty: there is none. user: the question itself."""

    system: str
    user: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """As chat templates and endpoints take them."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, {"role": "user", "content": self.user}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a judge said. whole: whether it came to its end; one that was cut off says nothing. tokens_in, tokens_out:
    of the question and of the reply."""

    text: str
    whole: bool = True
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NoReply:
    """Why there is no reply, in words. passing: it is no fault of the question. hopeless: no other question would have
    one. over: it was not asked, as no more may be spent."""

    why: str
    passing: bool = False
    hopeless: bool = False
    over: bool = False


Outcome = Reply | NoReply


class Answering(Protocol):
    """Who answers questions: an endpoint, or a model of ours. spent: tokens, which whoever asks settles after a call.
    place: where it is, in words."""

    @property
    def spent(self) -> Spending: ...
    @property
    def place(self) -> str: ...

    def replies(self, questions: Sequence[JudgeQuestion]) -> list[Outcome]:
        """The outcome of each, in their order. Every rank calls, once for a rollout."""
        ...
