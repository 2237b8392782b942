"""What a step is made of: row length, rows and source weights as functions of the step.

A plan is a table of phases and a mix of weights that may move with progress. A change takes effect at the step that the
plan names, however far batches were read ahead: a stream ends its packing window there (see `stream.py`), and where the
change was decided later (see `Mix.changed`), it unpacks the rows beyond that step.
"""

from __future__ import annotations

import difflib
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from lifecycle.data.mixture.weight import Weight
from lifecycle.errors import UserError

REPLAY = "replay"
PROGRESS = 1000  # steps of a run whose length is not known yet, for the means of weights that move
MAX_DEFAULT_STREAMS = 16
WINDOWS_A_RAMP = 64
"""A window is packed with one set of weights: weights that move with every step are followed in so many windows."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """From `step` on: rows of `row_length` positions, `rows` of them a step (over all ranks).

    weights: of the sources in this phase, instead of the mix's; None: the mix's. is_counted: a row is one prompt, and
    counts as 1 whatever its length.
    """

    step: int
    row_length: int
    rows: int
    weights: Mapping[str, float] | None = None
    is_counted: bool = False

    def __post_init__(self) -> None:
        if self.row_length < 2 or self.rows < 1:
            raise UserError(
                f"a step of {self.rows} rows of {self.row_length} tokens is empty: stage.global_batch_tokens must be "
                "at least stage.sequence_length, and stage.sequence_length at least 2"
            )

    @property
    def size(self) -> int:
        """The size of a step: its positions, or (is_counted) its prompts."""
        return self.rows if self.is_counted else self.rows * self.row_length


class StepRange(Protocol):
    """The fields of a segment of a run's timeline that a phase needs (see `lifecycle.duration`)."""

    @property
    def step(self) -> int: ...
    @property
    def row_length(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def weights(self) -> Mapping[str, float] | None: ...


def phases_of(segments: Iterable[StepRange]) -> list[Phase]:
    """The segments of a run's timeline as phases of a batch plan."""
    return [Phase(step=s.step, row_length=s.row_length, rows=s.rows, weights=s.weights) for s in segments]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Weights of the sources, by progress, and the share of the replayed ones among them, by step.

    weights: a number, or one that moves with progress (`weight.py`). total: steps of the run, for progress.
    replay: the sources that are replayed. shares: (step, share) with ascending steps: from each step on, the replayed
    sources together have this share of the tokens, divided by their weights; the others divide the rest.
    """

    weights: Mapping[str, Weight]
    total: int = 1
    replay: frozenset[str] = frozenset()
    shares: tuple[tuple[int, float], ...] = ()

    def at(self, step: int, own: Mapping[str, float] | None = None) -> dict[str, float]:
        """Shares of the tokens at `step`, which add up to 1; `own`: a phase's weights, instead of the mix's."""
        progress = min(step / max(self.total - 1, 1), 1.0)
        weights = {
            name: weight.at(progress) if own is None or is_inherited(name) else own.get(name, 0.0)
            for name, weight in self.weights.items()
        }
        share, total = self.share(step), sum(weights.values())
        if share is None:
            if not total:
                raise UserError(f"at step {step} no source has a weight above 0: give one a weight that does not end")
            return {name: weight / total for name, weight in weights.items()}
        back = parts({name: weight for name, weight in weights.items() if name in self.replay})
        rest = sum(weight for name, weight in weights.items() if name not in back) or 1.0
        return {n: share * back[n] if n in back else (1.0 - share) * w / rest for n, w in weights.items()}

    def share(self, step: int) -> float | None:
        """The share of the replayed sources at `step`; None where there are none, or no share is set."""
        bound = [share for at, share in self.shares if at <= step]
        return bound[-1] if bound and self.replay else None

    def replayed(self) -> dict[str, float]:
        """Each replayed source's part of the replay, by the weights at the beginning. Raises UserError for none."""
        if not self.replay:
            raise UserError(
                "stage.ewc measures on the parent's data, and no source here is replayed: name a source replay in the "
                "mixture"
            )
        return parts({name: self.weights[name].at(0) for name in sorted(self.replay)})

    def changed(self, step: int, share: float) -> Mix:
        """The same with another share of the replayed sources from `step` on."""
        return replace(self, shares=(*((at, s) for at, s in self.shares if at < step), (step, share)))

    @property
    def moves(self) -> bool:
        """Whether some weight moves with every step."""
        return any(weight.moves for weight in self.weights.values())

    @cached_property
    def changes(self) -> list[int]:
        """Steps at which the weights jump."""
        steps = {at for at, _ in self.shares if at > 0 and self.replay}
        for weight in self.weights.values():
            steps.update(at for at in weight.jumps(self.total) if at > 0)
        return sorted(steps)

    def mean(
        self, own: Mapping[str, float] | None = None, *, start: int = 0, stop: int | None = None
    ) -> dict[str, float]:
        """Mean shares over the steps from `start` to `stop` (exclusive; None: the end)."""
        stop = self.total if stop is None else stop
        constant_now = not self.moves and not any(start < at < stop for at in self.changes)
        steps = [start] if constant_now or stop <= start else range(start, stop, max(1, (stop - start) // 1000))
        found = [self.at(step, own) for step in steps]
        return {name: sum(shares[name] for shares in found) / len(found) for name in self.weights}


@dataclass(frozen=True)
class BatchPlan:
    """Phases in order of their steps, the first at step 0, and the mix of all of them."""

    phases: tuple[Phase, ...]
    mix: Mix = field(default_factory=lambda: Mix(weights={}))

    def __post_init__(self) -> None:
        steps = [phase.step for phase in self.phases]
        if not steps or steps[0] != 0 or steps != sorted(set(steps)):
            raise UserError(f"a batch plan's phases must start at step 0 and ascend; got steps {steps}")

    def at(self, step: int) -> Phase:
        """The phase that step `step` belongs to."""
        return self.phases[bisect_right(self._starts, step) - 1]

    def weights(self, step: int) -> dict[str, float]:
        """Shares of the sources at `step`."""
        return self.mix.at(step, self.at(step).weights)

    def next_change(self, step: int) -> int | None:
        """The first step after `step` at which rows or weights jump, or None."""
        later = self._changes[bisect_right(self._changes, step) :]
        return later[0] if later else None

    @cached_property
    def _starts(self) -> list[int]:
        return [phase.step for phase in self.phases]

    @cached_property
    def _changes(self) -> list[int]:
        return sorted({*self._starts, *self.mix.changes})

    def window(self, step: int, steps: int) -> int:
        """Steps of the window that begins at `step`: at most `steps`, and none beyond the next change."""
        if self.mix.moves:
            steps = min(steps, max(1, self.mix.total // WINDOWS_A_RAMP))
        change = self.next_change(step)
        return steps if change is None else min(steps, change - step)

    def tokens(self, start: int, stop: int) -> int:
        """Positions, or prompts, of the steps from `start` to `stop` (exclusive)."""
        bounds = [*(phase.step for phase in self.phases), max(stop, self.phases[-1].step)]
        return sum(
            max(0, min(end, stop) - max(phase.step, start)) * phase.size
            for phase, end in zip(self.phases, bounds[1:], strict=True)
        )

    @staticmethod
    def of(mix: Mix, phases: Sequence[Phase], steps: int) -> BatchPlan:
        """The plan of a run of `steps` steps, over which weights move with progress. Raises UserError for a phase with
        a weight of an unknown source, or without a weight above 0."""
        for number, phase in enumerate(phases):
            _check_weights(f"stage.phases[{number}].weights", phase.weights, mix)
        return BatchPlan(tuple(phases), replace(mix, total=steps))

    def planned(self, total: int) -> dict[str, float]:
        """Positions (or prompts) of each source in the steps up to `total`, by the planned shares."""
        out = dict.fromkeys(self.mix.weights, 0.0)
        steps = sorted({0, total, *(p.step for p in self.phases if p.step < total)})
        for start, stop in zip(steps, steps[1:], strict=False):
            tokens = self.tokens(start, stop)
            for name, share in self.mix.mean(self.at(start).weights, start=start, stop=stop).items():
                out[name] += tokens * share
        return out

    def streams(self, wanted: int | None, world_size: int) -> int:
        """The number of logical streams: it divides the rows of every phase, and ranks share it out evenly.

        It must not depend on the number of ranks unless it has to (the token sequence is a function of it), so the
        default is the largest divisor of the rows up to 16.
        """
        rows = self._even_rows
        count = wanted or max(d for d in range(1, MAX_DEFAULT_STREAMS + 1) if rows % d == 0)
        if rows % count:
            raise UserError(
                f"data.streams is {count}; it must divide the rows of a step ({rows}): try {_near(rows, count)}"
            )
        if count % world_size:
            raise UserError(
                f"{count} logical streams (data.streams; rows of a step: {rows}) cannot be shared out evenly among "
                f"{world_size} ranks: set stage.global_batch_tokens so that the rows are a multiple of {world_size}, "
                "or data.streams to a multiple of the ranks"
            )
        return count

    @property
    def _even_rows(self) -> int:
        """The greatest common divisor of the rows of all phases."""
        return math.gcd(*(phase.rows for phase in self.phases))

    def idle_workers(self, wanted: int | None, world_size: int, workers: int) -> list[str]:
        """A notice about workers that have no stream to read and are not started; empty where all have one."""
        streams = self.streams(wanted, world_size)
        each = streams // world_size
        if workers <= each:
            return []
        more = [n for n in range(streams, self._even_rows + 1) if self._even_rows % n == 0 and n % world_size == 0]
        enough = next((n for n in more if n >= workers * world_size), max(more))
        advice = f"; a new run may have data.streams={enough}" if enough > streams else ""
        return [
            f"hardware.workers is {workers}, and {each} of them {'work' if each > 1 else 'works'} for each device: the "
            f"data has {streams} streams in all (data.streams){advice}"
        ]


def _near(rows: int, count: int) -> int:
    return max(d for d in range(1, count + 1) if rows % d == 0)


def fixed(weights: Mapping[str, float], *, row_length: int, rows: int) -> BatchPlan:
    """A plan of one phase and constant weights."""
    mix = Mix(weights={name: Weight(start=weight, end=weight) for name, weight in weights.items()})
    return BatchPlan((Phase(step=0, row_length=row_length, rows=rows),), mix)


def mixture(weights: Mapping[str, Any], replay_share: float | None) -> Mix:
    """The mix of a config. weights: by source, as configured. replay_share: share of the tokens that the replayed
    sources have from the first step on; None: by their own weights."""
    made = Weight.of_sources(weights)
    shares = () if replay_share is None else ((0, replay_share),)
    return Mix(weights=made, total=PROGRESS, replay=replayed(made), shares=shares)


def largest(mix: Mix) -> str:
    """The source of largest mean weight, among the run's own sources where it trains on any: passes over replayed
    sources do not measure the run."""
    means = mix.mean()
    own = [name for name, weight in means.items() if weight and name not in mix.replay]
    return max(own or means, key=lambda name: means[name])


def replayed(names: Iterable[str]) -> frozenset[str]:
    """The sources of the parent's data: a source named `replay`, or `replay.*` of the parent's mixture."""
    return frozenset(name for name in names if name == REPLAY or is_inherited(name))


def is_inherited(name: str) -> bool:
    """Whether a name is that of a source of the parent's mixture, whose share of the tokens is `stage.replay.share`."""
    return name.startswith(f"{REPLAY}.")


def parts(weights: Mapping[str, float]) -> dict[str, float]:
    """Each weight's part of their sum; equal parts where all are 0, so that a share that is set for them is used."""
    total = sum(weights.values())
    return {name: weight / total if total else 1.0 / len(weights) for name, weight in weights.items()}


def _check_weights(where: str, own: Mapping[str, float] | None, mix: Mix) -> None:
    for name, weight in (own or {}).items():
        if is_inherited(name):
            raise UserError(
                f"{where} has a weight for {name}, which is replayed from the parent's mixture: leave it out "
                f"(stage.replay.share is the share of all replay), or name a source {REPLAY} of your own, whose weight "
                "phases may set"
            )
        if name not in mix.weights:
            sources = [source for source in mix.weights if not is_inherited(source)]
            near = difflib.get_close_matches(name, sources, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the sources are {', '.join(sources)}"
            raise UserError(f"{where} has a weight for {name}, and there is no such source; {hint}")
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"{where}.{name} is {weight}; weights are positive, or 0 for none of it")
    if own is not None and not sum(own.values()):
        raise UserError(f"{where} gives no source a weight above 0: name one that is trained on, or leave it out")
