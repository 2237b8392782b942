"""Learning-rate schedules: pure functions of the step that give a factor in [0, 1] of the peak rate.

Steps count from 0. A warm-up of W steps gives (step + 1) / W: the first update has 1/W, update W-1 has exactly 1, and
what follows starts from there (W = 0 is W = 1: the first update is at the peak); with a `warmup_start` s it gives
s + (1 - s) (step + 1) / W. `cosine`, `linear` and `1-sqrt` reach exactly `min_ratio` at the last update, `total - 1`;
so does the decay of `wsd` (warm-up, stable, decay; arXiv 2404.06395; its
1-sqrt shape arXiv 2405.18392). A run that is all warm-up ends at 1. Past the end the last value stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

from lifecycle.bounds import FromZero, Share
from lifecycle.errors import UserError

StepsOf = Callable[[float], int]
Shape = Literal["linear", "cosine", "1-sqrt"]
Name = Literal["cosine", "wsd", "linear", "1-sqrt", "constant"]
NAMES = get_args(Name)
NOTICE_FROM = 0.02
"""Relative change of the rate from which on the user gets a notice, where a run continues with another length."""


def decay(progress: float, shape: Shape, min_ratio: float) -> float:
    """From 1 at progress 0 to exactly `min_ratio` at progress 1."""
    remaining = {
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "1-sqrt": 1.0 - math.sqrt(progress),
    }[shape]
    return min_ratio + (1.0 - min_ratio) * remaining


def constant(step: int, *, warmup: int, start: float = 0.0) -> float:
    """Warm-up from `start` to 1, then 1."""
    return min(1.0, start + (1.0 - start) * (step + 1) / max(warmup, 1))


def wsd(
    step: int, *, total: int, warmup: int, decay_steps: int, shape: Shape, min_ratio: float, start: float = 0.0
) -> float:
    """Warm-up, then 1, then a decay over the last `decay_steps` updates."""
    stable_end = total - decay_steps - 1  # the last update at the peak
    if decay_steps == 0 or step <= stable_end:
        return constant(step, warmup=warmup, start=start)
    return decay(min(1.0, (step - stable_end) / decay_steps), shape, min_ratio)


def falling(step: int, *, total: int, warmup: int, shape: Shape, min_ratio: float, start: float = 0.0) -> float:
    """Warm-up, then a decay to the last update; `cosine` is half a cosine (arXiv 1608.03983, without restarts)."""
    decay_steps = max(total - max(warmup, 1), 0)
    return wsd(step, total=total, warmup=warmup, decay_steps=decay_steps, shape=shape, min_ratio=min_ratio, start=start)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Settings under `stage.schedule`. A length is given in steps, in tokens or as a fraction of the run: one of three.

    The lengths and the shape of the decay are used by `wsd` alone (the others decay until the end, or not at all), and
    may be set with any name. min_ratio: where the decay ends, as a share of the peak; `constant` does not read it.
    warmup_start: where the warm-up begins, as a share of the peak. stretch: see `Course`.
    """

    name: Name
    min_ratio: Share
    warmup_start: Share = 0.0
    warmup_steps: FromZero | None = None
    warmup_tokens: FromZero | None = None
    warmup_fraction: Share | None = None
    decay_steps: FromZero | None = None
    decay_tokens: FromZero | None = None
    decay_fraction: Share | None = None
    decay_shape: Shape = "1-sqrt"
    stretch: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for settings that are not valid; lengths are compared with the run in `resolve`."""
        if self.name not in NAMES:
            raise UserError(f"stage.schedule.name is {self.name!r}; choose one of {', '.join(NAMES)}.")
        if self.decay_shape not in ("linear", "cosine", "1-sqrt"):
            raise UserError(f"stage.schedule.decay_shape is {self.decay_shape!r}; choose linear, cosine or 1-sqrt.")
        self._one_unit("warmup", required=True)
        self._one_unit("decay", required=self.name == "wsd")

    def course(self, total_steps: int, first: StepsOf, last: StepsOf) -> Course:
        """The factors of a run, by the arguments and with the errors of `resolve`."""
        warmup = self._steps("warmup", total_steps, first)
        return Course(self.resolve(total_steps, first, last), total_steps, warmup=warmup, stretch=self.stretch)

    def resolve(self, total_steps: int, first: StepsOf, last: StepsOf) -> Callable[[int], float]:
        """The factor as a function of the step, for a run of `total_steps`; `first` and `last` give the number of steps
        that hold so many tokens, from the run's beginning and back from its end.

        Raises `UserError` when the warm-up (for `wsd`: warm-up and decay) is longer than the run.
        """
        warmup = self._steps("warmup", total_steps, first)
        decay_steps = self._steps("decay", total_steps, last) if self.name == "wsd" else 0
        if warmup + decay_steps > total_steps:
            lengths = f"{warmup} steps of warm-up" + (f" and {decay_steps} of decay" if self.name == "wsd" else "")
            shares = "stage.schedule.warmup_fraction" + (", decay_fraction" if self.name == "wsd" else "")
            raise UserError(
                f"stage.schedule asks for {lengths}, but the run has {total_steps} steps. "
                f"Shorten them, lengthen the run, or give shares of the run ({shares}) and set the other units to null."
            )
        begin: dict[str, float] = {"warmup": warmup, "start": self.warmup_start}
        if self.name == "constant":
            return partial(constant, **begin)  # type: ignore[arg-type]
        whole = {**begin, "total": total_steps, "min_ratio": self.min_ratio}
        if self.name == "wsd":
            return partial(wsd, **whole, decay_steps=decay_steps, shape=self.decay_shape)  # type: ignore[arg-type]
        return partial(falling, **whole, shape=self.name)  # type: ignore[arg-type]

    def _lengths(self, part: Literal["warmup", "decay"]) -> dict[str, float | None]:
        if part == "warmup":
            return {"steps": self.warmup_steps, "tokens": self.warmup_tokens, "fraction": self.warmup_fraction}
        return {"steps": self.decay_steps, "tokens": self.decay_tokens, "fraction": self.decay_fraction}

    def _one_unit(self, part: Literal["warmup", "decay"], *, required: bool) -> None:
        given = {unit: length for unit, length in self._lengths(part).items() if length is not None}
        if len(given) > 1:
            came = " and ".join(f"stage.schedule.{part}_{unit}={length}" for unit, length in given.items())
            others = " ".join(f"stage.schedule.{part}_{unit}=null" for unit in list(given)[1:])
            raise UserError(f"{came} are given together; keep one unit and set the others to null ({others}).")
        if required and not given:
            keys = ", ".join(f"stage.schedule.{part}_{unit}" for unit in self._lengths(part))
            raise UserError(f"none of {keys} is given; give one of them ({part}_steps=0 for no {part}).")

    def _steps(self, part: Literal["warmup", "decay"], total_steps: int, steps_of: StepsOf) -> int:
        lengths = self._lengths(part)
        if lengths["tokens"] is not None:
            return steps_of(lengths["tokens"])
        if lengths["fraction"] is not None:
            return round(lengths["fraction"] * total_steps)
        return int(lengths["steps"] or 0)


class Turn(NamedTuple):
    """Factors: of the last step, of the next step, and of the next step by the schedule of the new length."""

    reached: float
    next: float
    planned: float

    @property
    def stays_at_zero(self) -> bool:
        """Whether no further step has a rate, though the schedule of the new length has some."""
        return self.next == 0 < self.planned


class Course:
    """The factor of every step of one run, which may go on with another length than it began with.

    At the same step the schedule of the new length may have a far higher factor: a run at the end of its decay would
    jump back towards the peak. So after the warm-up the factor never rises, unless `stretch` is true.
    """

    def __init__(self, factor: Callable[[int], float], steps: int, *, warmup: int, stretch: bool) -> None:
        self._factor, self._steps, self._warmup, self._stretch = factor, steps, warmup, stretch
        self.most = 1.0

    def __call__(self, step: int) -> float:
        return min(self._factor(step), self.most)

    def state(self, taken: int) -> dict[str, float]:
        """The state after `taken` steps as plain numbers, for the checkpoint."""
        reached = self(max(taken - 1, 0))
        return {"steps": self._steps, "reached": reached, "warm": float(taken >= self._warmup), "most": self.most}

    def restore(self, state: Mapping[str, float], taken: int) -> Turn | None:
        """Continue after `taken` steps of a saved run; the inverse of `state`. Returns the turn that the factor takes
        where the length of the run has changed, and the factor with it; else None."""
        self.most = 1.0 if self._stretch else state["most"]
        planned, reached = self._factor(taken), state["reached"]
        if not taken or state["steps"] == self._steps or math.isclose(planned, reached, rel_tol=NOTICE_FROM):
            return None
        if state["warm"] and planned > reached and not self._stretch:
            self.most = reached
        return Turn(reached, self(taken), planned)


def of_another_length(turn: Turn, peak: float, steps: int) -> str:
    """The notice for the user where `Course.restore` found another length. peak: the peak rate; steps: the length."""
    before, after, planned = (f"{factor * peak:.2e}" for factor in turn)
    held = f", where the schedule of {steps} steps has {planned}: stage.schedule.stretch=true takes that"
    goes = f"stays at {after}" if before == after else f"goes on from {before} at {after}"
    return f"the run has {steps} steps now: its rate {goes}{held if after != planned else ''}"
