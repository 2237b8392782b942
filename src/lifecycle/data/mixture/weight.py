"""A source's weight as a function of progress p, from 0 at the run's first step to 1 at its last.

weight: 0.3                                       always
weight: {start: 0.7, end: 0.2}                    a straight line
weight: {start: 0.7, end: 0.2, shape: cosine}     end + (start - end) (1 + cos(pi p)) / 2
weight: {table: {0: 1.0, 0.3: 0.5, 0.8: 0}}       from each progress on
weight: 0                                         never: its held-out text is measured, and nothing of it is trained on
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lifecycle.errors import UserError

EDGE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A weight that moves from `start` to `end`, or jumps by `table` (progress -> weight, the first at 0)."""

    start: float = 0.0
    end: float = 0.0
    shape: Literal["linear", "cosine"] = "linear"
    table: Mapping[float, float] | None = None

    @staticmethod
    def of(value: Any, where: str) -> Weight:
        """From what a config holds: a number or a mapping. Raises UserError that names `where`."""
        if isinstance(value, Weight):
            return value
        if not isinstance(value, Mapping):
            weight = Weight(start=float(value), end=float(value))
        elif set(value) == {"table"} and isinstance(value["table"], Mapping) and value["table"]:
            weight = Weight(table={float(at): float(w) for at, w in sorted(value["table"].items())})
        elif {"start", "end"} <= set(value) <= {"start", "end", "shape"}:
            weight = Weight(**value)
        else:
            raise UserError(
                f"{where} has the keys {', '.join(map(str, value)) or 'none'}; wanted a number, {{start, end, shape}}, "
                "or {table: {PROGRESS: WEIGHT, ...}}"
            )
        weight.check(where)
        return weight

    @staticmethod
    def of_sources(values: Mapping[str, Any]) -> dict[str, Weight]:
        """By source. Raises UserError for a weight that is not valid, and where no source has a weight above 0."""
        if not values:
            raise UserError(
                "data.sources is empty: name at least one, for example data.sources.mine.path=texts/*.jsonl"
            )
        weights = {name: Weight.of(value, f"data.sources.{name}.weight") for name, value in values.items()}
        if not any(weight.trained for weight in weights.values()):
            first = next(iter(weights))
            raise UserError(f"no source has a weight above 0: nothing to train on. Set data.sources.{first}.weight=1")
        return weights

    def check(self, where: str) -> None:
        """Raise UserError for an unknown shape, a table without progress 0 or beyond 1, or a weight below 0."""
        if self.shape not in ("linear", "cosine"):
            raise UserError(f"{where}.shape is {self.shape!r}; choose linear or cosine")
        if self.table is not None and (min(self.table) != 0 or max(self.table) > 1):
            raise UserError(
                f"{where}.table begins at {min(self.table)} and ends at {max(self.table)}; its keys are shares of the "
                "run, from 0 (which must be there) to 1"
            )
        values = self.values
        if not all(math.isfinite(w) and w >= 0 for w in values):
            raise UserError(f"{where} is {self}; weights are positive, or 0 for a source that is measured only")

    @property
    def values(self) -> list[float]:
        """All weights of the table, or the weights at the start and the end."""
        return [self.start, self.end] if self.table is None else list(self.table.values())

    @property
    def trained(self) -> bool:
        """Whether it is ever above 0: else the source is measured only."""
        return max(self.values) > 0

    @property
    def moves(self) -> bool:
        """Whether it changes with every step."""
        return self.table is None and self.start != self.end

    def at(self, progress: float) -> float:
        """The weight at a progress from 0 to 1."""
        if self.table is not None:
            return [weight for begins, weight in self.table.items() if begins <= progress + EDGE][-1]
        remaining = 1.0 - progress if self.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.end + (self.start - self.end) * remaining

    def jumps(self, total: int) -> list[int]:
        """The steps of a run of `total` at which it jumps."""
        return [math.ceil(at * (total - 1) - EDGE) for at in self.table or {} if at > 0]

    def __str__(self) -> str:
        if self.table is not None:
            return ", ".join(f"{weight:g} from {at:.0%} on" for at, weight in self.table.items())
        return f"{self.start:g}" if not self.moves else f"{self.start:g} to {self.end:g} ({self.shape})"
