"""The numbers that a report leads with, derived from what the run's folder holds; None where it does not say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from lifecycle.report.run.run_data import RunData


@dataclass(frozen=True, kw_only=True)
class DomainResult:
    """One domain's held-out text: the last measured perplexity and bits per byte, and those of the two baselines.

    A baseline is None where the run did not count it.
    """

    name: str
    perplexity: float
    bits_per_byte: float | None
    first_perplexity: float | None
    unigram: float | None
    bigram: float | None
    unigram_bits: float | None
    bigram_bits: float | None


@dataclass(frozen=True, kw_only=True)
class Headline:
    """Result and cost of a run. seconds: training time over all its sessions. best_step, best_loss: of the steps that
    have a checkpoint; begun_loss: of the model that it began with, where that was measured."""

    status: str
    steps: int | None
    planned_steps: int | None
    tokens: float | None
    seconds: float | None
    tokens_per_second: float | None
    mfu: float | None
    train_loss: float | None
    held_out_loss: float | None
    best_step: int | None
    best_loss: float | None
    begun_loss: float | None
    domains: tuple[DomainResult, ...]


def headline(run: RunData) -> Headline:
    """The headline of a run. Speeds are medians, so that one stall (a validation, another process) does not change
    them."""
    steps, tokens = run.last("step"), run.last("tokens")
    held_out = list(zip(*run.series("valid/loss", "step"), strict=True))
    best = min(((step, loss) for step, loss in held_out if step), key=lambda pair: pair[1], default=None)
    return Headline(
        status=run.status,
        steps=_whole(steps if steps is not None else run.run.get("steps")),
        planned_steps=_whole(run.run.get("total_steps") or run.setting("stage.max_steps")),
        tokens=tokens if tokens is not None else run.run.get("tokens"),
        seconds=run.run.get("seconds"),
        tokens_per_second=_median(run, "perf/tokens_per_second"),
        mfu=_median(run, "perf/mfu"),
        train_loss=run.last(run.training_loss),
        held_out_loss=run.last("valid/loss"),
        best_step=_whole(best[0] if best else None),
        best_loss=best[1] if best else None,
        begun_loss=next((loss for step, loss in held_out if not step), None),
        domains=tuple(_domain(run, name) for name in run.domains if run.last(f"valid/{name}/perplexity") is not None),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _median(run: RunData, name: str) -> float | None:
    values = [v for v in run.metrics.get(name, []) if v is not None and math.isfinite(v)]
    # The first reading holds compilation and warm-up.
    return median(values[1:] or values) if values else None


def _domain(run: RunData, name: str) -> DomainResult:
    counted = run.baselines.get(name, {})
    perplexities = run.series(f"valid/{name}/perplexity", "step")[1]
    return DomainResult(
        name=name,
        perplexity=perplexities[-1],
        bits_per_byte=run.last(f"valid/{name}/bits_per_byte"),
        first_perplexity=perplexities[0] if len(perplexities) > 1 else None,
        unigram=counted.get("unigram"),
        bigram=counted.get("bigram"),
        unigram_bits=_bits(counted.get("unigram"), counted.get("bytes_per_token")),
        bigram_bits=_bits(counted.get("bigram"), counted.get("bytes_per_token")),
    )


def _bits(perplexity: float | None, bytes_per_token: float | None) -> float | None:
    return math.log2(perplexity) / bytes_per_token if perplexity and bytes_per_token else None
