"""Where a run's data ends: at the last step of its plan, with the last row of a source, or in an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lifecycle.data.stream.loading.exchange import every_rank
from lifecycle.errors import UserError


class Ending(NamedTuple):
    """The number of steps after which the data ended, or failed. fault: the error; None where the end is a regular one.

    While batches are read ahead of the steps that are taken, it is known before the last of these.
    """

    step: int
    fault: Exception | None


@dataclass(frozen=True, kw_only=True)
class Ends:
    """`last`: steps after which nothing is read; None: it goes on to the last row of `source`, as often as that may be
    read. dropping: whether it is a good end, too, when all sources are used up. over: the step that the data of a
    checkpoint ended with."""

    last: int | None
    source: str | None = None
    dropping: bool = False
    over: int | None = None

    @property
    def may_end(self) -> bool:
        """Whether a run may end without an error because there is nothing left to read."""
        return self.dropping or self.source is not None

    def is_last(self, step: int, ending: Ending | None) -> bool:
        """Whether the run is done after `step` steps."""
        ended = ending.step if ending and ending.fault is None else self.over
        return step in (ended, self.last)


def fault_of(ending: Ending | None) -> Exception | None:
    """What ended the data early, on whichever rank: every rank must call, once what was trained is saved."""
    faults = [one for one in every_rank(ending and ending.fault) if one is not None]
    return next((one for one in faults if isinstance(one, UserError)), faults[0] if faults else None)
