"""The keys of `stage.judge`: who judges, what it is asked, and what that may cost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lifecycle.bounds import Count, NotNegative, Positive
from lifecycle.errors import UserError
from lifecycle.rewards.judge.asking import check_template

VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
OWN_FIELDS = ("model", "messages", "max_tokens", "temperature", "n", "stream")
"""Fields of a request that `request` may not set."""
PLACES = ("question", "prompt", "completion", "answer", "low", "high")
PAIR_PLACES = ("question", "prompt", "a", "b", "answer")


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One thing that an answer is judged by. low, high: the ends of its scale. weight: of its mark in that of all."""

    question: str
    low: float
    high: float
    weight: Positive

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"stage.judge.criteria: low is {self.low:g} and high {self.high:g}; low must be below high")
        if not self.question.strip():
            raise UserError("stage.judge.criteria: a question is empty; write what is asked of an answer")

    def share(self, score: float) -> float:
        """A score as a mark from 0 to 1."""
        return (score - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class JudgeKeys:
    """A judge. url: of an endpoint; None: the model is a local one. model: its name. key_from: the environment variable
    that holds the key. version: a part of what replies are kept under. request: further fields of a request. in_flight:
    requests at a time. timeout_s: of one of them, from its start to its last byte; attempts: at a question;
    longest_wait_s: between two. price_in, price_out: of a million tokens. max_cost: at which the run ends. criteria: by
    name, judged apart; None: none of it. pairs_per_prompt: of samples that `preferred` compares, at most.
    """

    url: str | None
    model: str | None
    key_from: str | None
    version: str
    temperature: NotNegative | None
    max_new_tokens: Count | None
    request: dict[str, Any] = field(default_factory=dict)
    in_flight: Count
    timeout_s: Positive
    attempts: Count
    longest_wait_s: Positive
    price_in: NotNegative
    price_out: NotNegative
    max_cost: Positive | None
    system: str
    template: str
    pair_template: str
    pair_question: str
    criteria: dict[str, Criterion | None]
    pairs_per_prompt: Count

    def __post_init__(self) -> None:
        check_template(
            self.template, where="stage.judge.template", needed=("question", "completion", "low", "high"), known=PLACES
        )
        check_template(
            self.pair_template, where="stage.judge.pair_template", needed=("question", "a", "b"), known=PAIR_PLACES
        )
        if not self.rubric:
            raise UserError("stage.judge.criteria is empty: name at least one, with its question, low, high and weight")
        if self.key_from is not None and not VARIABLE.fullmatch(self.key_from):
            raise UserError(
                "stage.judge.key_from must be the NAME of an environment variable, in capitals, as JUDGE_KEY; what "
                "came is not shown, as it may be a key: take it out of the command, and out of your shell's history"
            )
        if self.max_cost is not None and not self.price_in and not self.price_out:
            raise UserError(
                f"stage.judge.max_cost is {self.max_cost:g}, and nothing has a price: type stage.judge.price_in=... "
                "stage.judge.price_out=... (of a million tokens), or stage.judge.max_cost=null"
            )
        own = [name for name in self.request if name in OWN_FIELDS]
        if own:
            raise UserError(f"stage.judge.request sets {', '.join(own)}, which other keys of stage.judge set")
        _check_url(self.url)

    @property
    def rubric(self) -> dict[str, Criterion]:
        """The criteria that there are."""
        return {name: one for name, one in self.criteria.items() if one is not None}

    @property
    def sampling(self) -> Mapping[str, Any]:
        """The fields of a request that decide what a model says."""
        known = {"max_tokens": self.max_new_tokens, "temperature": self.temperature}
        return {name: value for name, value in known.items() if value is not None} | self.request


def _check_url(url: str | None) -> None:
    if url is None:
        return
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number, brackets that do not close
        whole = False
    if not whole:
        raise UserError(
            "stage.judge.url is no address of an endpoint: wanted http(s)://HOST[:PORT]/v1, as http://localhost:8000/v1"
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            "stage.judge.url has more than host and path, and would be written into the run's files: put a key into an "
            "environment variable and name that (stage.judge.key_from=NAME)"
        )
