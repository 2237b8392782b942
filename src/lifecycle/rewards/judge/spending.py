"""What a judge has used so far, for logs and checkpoints: tokens, and what they cost.

    cost = (tokens_in price_in + tokens_out price_out) / 1,000,000

A reply that stands in the cache costs nothing, unless this call of this run has paid for it before it was killed: a
step that is taken again tells the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True)
class Spending:
    """price_in, price_out: of a million tokens. calls: of the judge, each for the samples of a rollout. tokens_in,
    tokens_out: of all ranks, up to the call that goes on; new_in, new_out: of this rank, in that call."""

    price_in: float
    price_out: float
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    new_in: int = 0
    new_out: int = 0

    @property
    def cost(self) -> float:
        """In the unit of the prices, as far as this rank knows."""
        return self.of(self.tokens_in + self.new_in, self.tokens_out + self.new_out)

    def of(self, tokens_in: float, tokens_out: float) -> float:
        """What so many tokens cost."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def add(self, tokens_in: int, tokens_out: int) -> None:
        """Of a reply that this rank has paid for."""
        self.new_in, self.new_out = self.new_in + tokens_in, self.new_out + tokens_out

    def settle(self, tokens_in: int, tokens_out: int) -> None:
        """End a call, in which all ranks together have paid for so many."""
        self.calls += 1
        self.tokens_in, self.tokens_out = self.tokens_in + tokens_in, self.tokens_out + tokens_out
        self.new_in = self.new_out = 0

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"calls": self.calls, "tokens_in": self.tokens_in, "tokens_out": self.tokens_out}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `state`."""
        for name, value in (state or {}).items():
            setattr(self, name, value)
