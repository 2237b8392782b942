"""How a number of each step goes over a run: its first steps, its last ones, and the best between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

WINDOW = 10
"""Steps of a mean. Nothing is said of a number before it was told at twice as many steps."""

SURE = 6.0
"""Standard errors of a difference that is no noise: more than usual, for the best of many windows was a lucky one."""


@dataclass
class Trend:
    """first, last: the first and the last values, a window of each at most. best: the window of the greatest mean.
    seen: values so far. rough: squared differences of two that follow on one another, added up."""

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    seen: int = 0
    rough: float = 0.0

    def add(self, value: float) -> None:
        """One step more."""
        self.rough += (value - self.last[-1]) ** 2 if self.last else 0.0
        self.seen += 1
        if len(self.first) < WINDOW:
            self.first.append(value)
        self.last = [*self.last, value][-WINDOW:]
        if len(self.last) == WINDOW and (not self.best or fmean(self.last) > fmean(self.best)):
            self.best = self.last

    @property
    def known(self) -> bool:
        """Whether the last values are none of the first."""
        return self.seen >= 2 * WINDOW

    @property
    def start(self) -> float:
        """Mean of the first values."""
        return fmean(self.first)

    @property
    def now(self) -> float:
        """Mean of the last values."""
        return fmean(self.last)

    def fallen(self, since: Sequence[float]) -> float:
        """By how much the last values lie below those of another window, for sure; 0 where that may be noise."""
        noise = self.rough / (2 * (self.seen - 1))  # variance of a step about the trend
        fall, error = fmean(since) - self.now, (2 * noise / WINDOW) ** 0.5
        return fall if fall > SURE * error else 0.0


class Trends:
    """Those of all numbers, by name."""

    def __init__(self) -> None:
        self._by_name: dict[str, Trend] = {}

    def add(self, row: Mapping[str, float], names: Sequence[str]) -> None:
        """The numbers of a step, of those of `names` that it has."""
        for name in names:
            value = row.get(name)
            if value is not None and value == value:  # NaN says nothing
                self._by_name.setdefault(name, Trend()).add(value)

    def known(self, name: str) -> Trend | None:
        """The trend of a number, once it is long enough."""
        trend = self._by_name.get(name)
        return trend if trend is not None and trend.known else None

    def state(self) -> dict[str, Any]:
        """Plain containers, for the checkpoint."""
        return {name: [one.first, one.last, one.best, one.seen, one.rough] for name, one in self._by_name.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._by_name = {
            name: Trend(first=list(first), last=list(last), best=list(best), seen=seen, rough=rough)
            for name, (first, last, best, seen, rough) in state.items()
        }
