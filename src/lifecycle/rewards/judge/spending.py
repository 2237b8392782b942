"""What a judge has used so far, for logs and checkpoints: tokens, and what they cost.

A reply that stands in the cache costs nothing, unless this call of this run has paid for it before it was killed: a
step that is taken again tells the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MILLION = 1e6


@dataclass(kw_only=True)
class Spending:
    """price_in, price_out: of a million tokens. calls: of the judge, each for the samples of a rollout."""

    price_in: float
    price_out: float
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def cost(self) -> float:
        """In the unit of the prices."""
        return (self.tokens_in * self.price_in + self.tokens_out * self.price_out) / MILLION

    def add(self, tokens_in: int, tokens_out: int) -> None:
        """Of a reply that was paid for."""
        self.tokens_in, self.tokens_out = self.tokens_in + tokens_in, self.tokens_out + tokens_out

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("price")}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `state`."""
        for name, value in (state or {}).items():
            setattr(self, name, value)
