"""What an annotation says of a key beyond its type; `config.signature.Walk` reads it.

    every_steps: Every            0 and null alike: never
    patience: Count               1, 2, 3, ...
    share: Annotated[float, Bounds(least=0, below=1)]
    updates: Keys[Updates]        the fields of `Updates`, as keys of the node itself

A number that is not finite, or a whole number that 64 bits do not hold, fits no annotation at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """least, most: may be reached. above, below: may not. None: no such bound."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """Whether `value` lies within."""
        return not (
            (self.least is not None and value < self.least)
            or (self.above is not None and value <= self.above)
            or (self.most is not None and value > self.most)
            or (self.below is not None and value >= self.below)
        )

    def __str__(self) -> str:
        """In words, after "a number"."""
        low = f"above {self.above:g}" if self.above is not None else f"from {self.least or 0:g}"
        if self.most is not None:
            return f"{low} to {self.most:g}" if self.above is None else f"{low}, at most {self.most:g}"
        if self.below is not None:
            return (
                f"{low} to below {self.below:g}" if self.above is None else f"between {self.above:g} and {self.below:g}"
            )
        return f"{low} on" if self.above is None else low

    @property
    def example(self) -> str:
        """A number within, to type."""
        low = self.above if self.above is not None else self.least or 0
        return next(f"{n:g}" for n in (0.1, low, low + 1) if self.hold(n))


def due(step: int, every: int | None) -> bool:
    """Whether something that is done every `every` steps is done after `step` of them; 0 and None: never."""
    return bool(every) and step % int(every or 1) == 0


Count = Annotated[int, Bounds(least=1)]
FromZero = Annotated[int, Bounds(least=0)]
Every = FromZero | None
Positive = Annotated[float, Bounds(above=0)]
NotNegative = Annotated[float, Bounds(least=0)]
Share = Annotated[float, Bounds(least=0, most=1)]
Part = Annotated[float, Bounds(above=0, below=1)]
PartOrNone = Annotated[float, Bounds(least=0, below=1)]
PartOrAll = Annotated[float, Bounds(above=0, most=1)]

KEYS = "keys"
Fields = TypeVar("Fields")
Keys = Annotated[Fields, KEYS]
"""Of a parameter: a dataclass whose fields stand in the config beside the other keys, so that several constructors have
the same keys without repeating them."""
