"""The length of a run and the size of its steps.

the first of stage.max_steps, max_tokens, max_epochs                       ends it
stage.sequence_length, global_batch_tokens                                 make a step
stage.phases: [{at_steps: 0, sequence_length: 64}, {at_steps: 500, ...}]   change that on the way
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from lifecycle.bounds import Bounds, Count, FromZero, NotNegative, PartOrNone, Positive
from lifecycle.errors import UserError

MOST_STEPS = 2**40
UNITS = ("at_steps", "at_tokens", "at_fraction")
ENDS = ("max_steps", "max_tokens", "max_epochs")
OF_SAMPLES = ("samples_per_prompt", "temperature", "kl_coefficient")
"""Keys of a phase for stages that draw samples for prompts."""


@dataclass(frozen=True, kw_only=True)
class PhaseSpec:
    """One line of `stage.phases`: what holds from a point of the run on. None is the stage's own value.

    at_steps, at_tokens, at_fraction: where it begins; exactly one of the three, the same in all lines, the first at 0.
    sequence_length: positions of a row. rows: of a step; None: as many as fill global_batch_tokens. rate: factor of the
    learning rate. weights: of the sources; those not named get 0. rope_theta: rope base from here on (None: that of the
    line before); longer rows need a larger one. In stages that draw samples for prompts: samples_per_prompt,
    temperature, and kl_coefficient (`stage.kl.coefficient`).
    """

    at_steps: FromZero | None = None
    at_tokens: FromZero | None = None
    at_fraction: PartOrNone | None = None
    sequence_length: Annotated[int, Bounds(least=2)] | None = None
    rows: Count | None = None
    rate: Positive = 1.0
    weights: dict[str, NotNegative] | None = None
    rope_theta: Positive | None = None
    samples_per_prompt: Count | None = None
    temperature: Positive | None = None
    kl_coefficient: NotNegative | None = None

    @property
    def unit(self) -> str:
        """The one of `UNITS` that is given. Raises UserError for none or several."""
        given = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            raise UserError(
                f"a line of stage.phases gives {' and '.join(given) or 'no beginning'}; give exactly one of "
                f"{', '.join(UNITS)}"
            )
        return given[0]

    @property
    def at(self) -> float:
        """Where it begins, in its unit."""
        return float(getattr(self, self.unit))


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A phase of a run whose length is known: from `step` on, `rows` rows of `row_length` positions; or `rows` prompts,
    with `samples` completions of each, which have so many positions with their prompt at most. temperature,
    kl_coefficient: of these; None: the stage's own."""

    step: int
    row_length: int
    rows: int
    samples: int = 1
    rate: float = 1.0
    weights: dict[str, float] | None = None
    rope_theta: float | None = None
    temperature: float | None = None
    kl_coefficient: float | None = None

    @property
    def tokens(self) -> int:
        """Positions of a step."""
        return self.rows * self.row_length * self.samples


@dataclass(frozen=True)
class Timeline:
    """The whole run: `steps` steps, in segments."""

    steps: int
    segments: tuple[Segment, ...]

    @staticmethod
    def even(steps: int, *, rows: int, row_length: int) -> Timeline:
        """A run whose steps are all alike."""
        return Timeline(steps, (Segment(step=0, row_length=row_length, rows=rows),))

    def at(self, step: int) -> Segment:
        """The segment that `step` belongs to."""
        return self.segments[bisect_right([s.step for s in self.segments], step) - 1]

    def rate(self, step: int) -> float:
        """The factor of the learning rate in `step`."""
        return self.at(step).rate

    def rope_theta(self, step: int) -> float | None:
        """The rope base that the phases up to `step` have set; None: the model's own."""
        named = [s.rope_theta for s in self.segments if s.step <= step and s.rope_theta is not None]
        return named[-1] if named else None

    def tokens(self, steps: int | None = None) -> int:
        """Positions of the first `steps` steps; None: of all."""
        stop = self.steps if steps is None else steps
        bounds = [*(s.step for s in self.segments[1:]), max(stop, self.segments[-1].step)]
        return sum(max(0, min(end, stop) - s.step) * s.tokens for s, end in zip(self.segments, bounds, strict=True))

    def tokens_by_length(self) -> dict[int, int]:
        """Positions of the run, by the length of the rows that hold them."""
        out: dict[int, int] = {}
        for segment, steps in self.steps_by_segment():
            out[segment.row_length] = out.get(segment.row_length, 0) + steps * segment.tokens
        return out

    def steps_by_segment(self) -> list[tuple[Segment, int]]:
        """Each segment with its steps; none are after the end of the run."""
        ends = [*(s.step for s in self.segments[1:]), self.steps]
        return [
            (segment, max(0, min(end, self.steps) - segment.step))
            for segment, end in zip(self.segments, ends, strict=True)
        ]

    def steps_of(self, tokens: float) -> int:
        """The least number of steps that hold `tokens` positions."""
        left, bounds = tokens, [s.step for s in self.segments[1:]]
        for segment, end in zip(self.segments, [*bounds, None], strict=True):
            need = math.ceil(left / segment.tokens)
            if end is None or need <= end - segment.step:
                return segment.step + need
            left -= (end - segment.step) * segment.tokens
        raise AssertionError("the last segment has no end")

    def last_steps_of(self, tokens: float) -> int:
        """The least number of steps before the end that hold `tokens` positions."""
        return self.steps - max((s for s in range(self.steps) if self.tokens() - self.tokens(s) >= tokens), default=0)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The keys of `stage` for the length of the run and the size of its steps.

    view: that the stage trains on. global_batch_tokens: positions of a step over all ranks; None in a stage that
    samples, whose step is prompts_per_step prompts with samples_per_prompt completions of each. sequence_length:
    positions of a row, or of a prompt with its completion. phases: changes of that on the way. Raises UserError where
    they do not fit together.
    """

    view: str
    max_steps: Count | None
    max_tokens: Count | None
    max_epochs: Positive | None
    global_batch_tokens: Count | None
    sequence_length: Annotated[int, Bounds(least=2)]
    phases: list[PhaseSpec] = field(default_factory=list)
    prompts_per_step: Count | None = None
    samples_per_prompt: Count = 1

    def __post_init__(self) -> None:
        if (tokens := self.global_batch_tokens) is None:
            if self.prompts_per_step is None:
                raise UserError("stage.global_batch_tokens is null: give the positions of a step, 16384 for example")
        elif self.prompts_per_step is not None:
            raise UserError(
                f"stage.global_batch_tokens is {tokens}, but a step of this stage is stage.prompts_per_step="
                f"{self.prompts_per_step} prompts: type stage.global_batch_tokens=null"
            )
        elif tokens < self.sequence_length or tokens % self.sequence_length:
            near = max(1, round(tokens / self.sequence_length)) * self.sequence_length
            raise UserError(
                f"stage.global_batch_tokens is {tokens}; it must be a multiple of stage.sequence_length "
                f"({self.sequence_length}): try {near}"
            )
        if self.max_steps is None and self.max_tokens is None and self.max_epochs is None:
            raise UserError("the run has no end: give one of stage.max_steps, stage.max_tokens, stage.max_epochs")
        for number, phase in enumerate(self.phases):
            self._check(number, phase)

    def _check(self, number: int, phase: PhaseSpec) -> None:
        where = f"stage.phases[{number}]"
        before = self.phases[number - 1] if number else None
        if before is not None and phase.unit != before.unit:
            raise UserError(f"{where} begins {phase.unit}, the line before {before.unit}; use one unit in all lines")
        if phase.at <= before.at if before is not None else phase.at != 0:
            raise UserError(f"{where}.{phase.unit} is {phase.at:g}; the first begins at 0, each other after the last")
        given = [key for key in OF_SAMPLES if getattr(phase, key) is not None]
        if given and self.prompts_per_step is None:
            raise UserError(
                f"{where} has {' and '.join(given)}, and this stage draws no samples for prompts: leave it out"
            )
        length = self.length_of(phase)
        if length > self.sequence_length:
            raise UserError(
                f"{where}.sequence_length is {length}; wanted at most {self.sequence_length}, the longest rows of the "
                "run (stage.sequence_length)"
            )
        if phase.rows is None and self.global_batch_tokens is not None and self.global_batch_tokens % length:
            raise UserError(
                f"{where}.sequence_length is {length}, which does not divide stage.global_batch_tokens="
                f"{self.global_batch_tokens}: choose another, or give {where}.rows"
            )

    def length_of(self, phase: PhaseSpec) -> int:
        """Positions of a row in `phase`."""
        return phase.sequence_length or self.sequence_length

    def rows_of(self, length: int) -> int:
        """Rows of a step that are `length` positions long; prompts, where these are counted."""
        if self.prompts_per_step is not None:
            return self.prompts_per_step
        assert self.global_batch_tokens is not None
        return self.global_batch_tokens // length

    @property
    def positions(self) -> int:
        """Positions of a step without phases."""
        return self.rows_of(self.sequence_length) * self.sequence_length * self.samples_per_prompt

    @property
    def size_of_step(self) -> str:
        """The keys that say how large a step is, for messages."""
        if self.prompts_per_step is None:
            return f"stage.global_batch_tokens={self.global_batch_tokens}"
        return (
            f"{self.positions:,} positions: stage.prompts_per_step={self.prompts_per_step}, stage.samples_per_prompt="
            f"{self.samples_per_prompt}, stage.sequence_length={self.sequence_length}"
        )

    def timeline(self, epoch_positions: Callable[[], int], epoch_tokens: Callable[[Timeline], float]) -> Timeline:
        """The run, step by step.

        `epoch_positions` counts the trained positions of one pass over `data.epoch_source`, `epoch_tokens` those that a
        run gives to it; they are called only if passes are a limit. A limit in tokens is never passed; a pass is
        completed. Raises UserError for passes that no run comes to.
        """
        ends: list[Callable[[Timeline], int]] = []
        if (max_steps := self.max_steps) is not None:
            ends.append(lambda _: max_steps)
        if (max_tokens := self.max_tokens) is not None:
            ends.append(lambda line: self._steps_within(max_tokens, line))
        if self.max_epochs is not None:
            needed = self.max_epochs * epoch_positions()
            ends.append(lambda line: self._steps_to_give(needed, line, epoch_tokens))
        if not self.phases or self.phases[0].unit != "at_fraction":
            line = self._line(self._begins())
            return Timeline(min(end(line) for end in ends), line.segments)
        # in shares of the run the end moves the beginnings, and these the end: a few rounds settle it
        steps = len(self.phases)
        for _ in range(32):
            line = self._line(self._begins(steps))
            steps = max(len(self.phases), min(end(line) for end in ends))
        return Timeline(steps, self._line(self._begins(steps)).segments)

    def most_steps(self, line: Timeline) -> int | None:
        """Steps that `max_steps` and `max_tokens` allow; None where neither is given."""
        ends = [] if self.max_steps is None else [self.max_steps]
        if self.max_tokens is not None:
            ends.append(self._steps_within(self.max_tokens, line))
        return min(ends, default=None)

    def _begins(self, steps: int = 0) -> list[int]:
        """The first step of every phase; `steps`: of the whole run, for beginnings in shares of it."""
        begins: list[int] = []
        tokens = 0.0
        for number, phase in enumerate(self.phases):
            if phase.unit == "at_steps":
                begins.append(int(phase.at))
            elif phase.unit == "at_fraction":
                begins.append(round(phase.at * steps))
            else:
                size = self._segment(self.phases[number - 1], 0).tokens if number else 1
                begins.append(begins[-1] + math.ceil((phase.at - tokens) / size) if number else 0)
                tokens = phase.at
        return [max(begin, number) for number, begin in enumerate(begins)]

    def _line(self, begins: list[int]) -> Timeline:
        phases = self.phases or [PhaseSpec(at_steps=0)]
        segments = (self._segment(phase, step) for phase, step in zip(phases, begins or [0], strict=True))
        return Timeline(0, tuple(segments))

    def _segment(self, phase: PhaseSpec, step: int) -> Segment:
        length = self.length_of(phase)
        return Segment(
            step=step,
            row_length=length,
            rows=phase.rows or self.rows_of(length),
            samples=phase.samples_per_prompt or self.samples_per_prompt,
            temperature=phase.temperature,
            kl_coefficient=phase.kl_coefficient,
            rate=phase.rate,
            weights=phase.weights,
            rope_theta=phase.rope_theta,
        )

    def _steps_to_give(self, needed: float, line: Timeline, given: Callable[[Timeline], float]) -> int:
        """The least number of steps that give `needed` positions."""

        def enough(steps: int) -> bool:
            return given(replace(line, steps=steps)) >= needed * (1 - 1e-12)

        most = 1
        while not enough(most):
            most *= 2
            if most > MOST_STEPS:
                raise UserError(
                    f"stage.max_epochs is {self.max_epochs:g}, and the mixture gives too little to data.epoch_source "
                    "to come to so many passes: raise its weight, or give stage.max_tokens"
                )
        return bisect_left(range(most), True, key=enough)

    def _steps_within(self, tokens: int, line: Timeline) -> int:
        """As many steps as `tokens` positions allow."""
        steps = line.steps_of(tokens + 1) - 1
        if steps < 1:
            raise UserError(
                f"stage.max_tokens is {tokens}, less than one step ({self.size_of_step}): raise it, or lower the other"
            )
        return steps


def ended_by_config(limits: Limits, words: Sequence[str], timeline: Callable[[Limits], Timeline]) -> list[str]:
    """A notice for a user who typed a limit (among `words`), while a smaller one of the config files ends the run;
    empty otherwise. timeline: of a run with given limits."""
    given = [key for key in ENDS if getattr(limits, key) is not None]
    typed = [key for key in given if any(word.startswith(f"stage.{key}=") for word in words)]
    others = [key for key in given if key not in typed]
    if not (typed and others):
        return []
    alone: dict[str, Any] = dict.fromkeys(others)
    steps, wanted = timeline(limits).steps, timeline(replace(limits, **alone)).steps
    if wanted <= steps:
        return []
    mine = " and ".join(f"stage.{key}={getattr(limits, key)}" for key in typed)
    theirs = " and ".join(f"stage.{key}={getattr(limits, key)}" for key in others)
    return [
        f"the run ends after {steps:,} steps, by {theirs} of the config; {mine} as typed would be {wanted:,} steps: "
        f"type {' '.join(f'stage.{key}=null' for key in others)} to let it count"
    ]
