"""Metrics of a run: kept on the device, read every `log_every` steps, at validations and at checkpoints.

Every logger gets one row a step.

`perf/tokens_per_second`, `step_s` and `mfu` are of training, waiting for data included; validation and the saving of
checkpoints are not in them. The first counts every token that the model reads, prompts too, but no padding;
`train/tokens` counts the trained ones. `perf/mfu` counts dense peak FLOPs, and 6N + 12LHT FLOPs a token that is read,
at the length T of its row (`ModelConfig.flops_per_token`); work of a second network is not in it. `moe/load_max` and
`moe/load_min` are the visits of the busiest and the idlest expert of any layer in a step, 1 being an even load.

Of held-out text, nll being the sum of -log p over its trained tokens, end marks included:

    loss = nll / tokens    perplexity = exp(loss)    bits per byte = nll / (ln 2 * bytes)

The bytes are those of the text of the same tokens, in UTF-8: under the view `chat` of what the assistant writes,
without the prompt and without marks. Pairs, judged completions and prompts have a loss alone, and what their stage
measures.

`valid/loss` weights the domains as the mixture does: it is absent where all that is measured has weight 0. A domain of
which nothing could be measured, as answers that no grader marked, is absent too.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lifecycle.batch import DataFeed
from lifecycle.bounds import due
from lifecycle.model import ModelConfig
from lifecycle.stages.step.collectives import sum_over_ranks

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

WARM_UP_STEPS = 3  # compilation and first allocations happen here; the collector is frozen after them


class Meter:
    """Collects the metrics of steps and passes them to the trainer's loggers; `latest` holds the last ones for
    displays. listeners: are told the row of every step, in order, on every rank."""

    def __init__(self, *, log_every: int | None, peak_flops: float | None, sources: Sequence[str]) -> None:
        self.log_every, self.peak_flops = log_every, peak_flops
        self.latest: dict[str, float] = {}
        self.listeners: list[Callable[[int, Mapping[str, float]], None]] = []
        self.tokens = 0.0
        self.seconds = 0.0
        self._sources = list(sources)
        self._by_source = [0.0] * len(sources)
        self._rows: list[tuple[int, Tensor, dict[str, Any]]] = []
        self._trainer: Trainer | None = None
        self._read, self._flops = 0.0, 0.0  # tokens read since the last reading, and the work on them
        self._paused_at: float | None = None
        self._since = time.perf_counter()
        self._waited = 0.0
        self._steps = 0
        self._checkpoint_s = 0.0
        self._device = torch.device("cpu")
        self._collector = True, 0  # before training: whether it collects, objects that somebody else has frozen

    def start(self, trainer: Trainer, feed: DataFeed, config: ModelConfig) -> None:
        """Begin to measure time; call it before the first step."""
        self._trainer, self._feed, self._config = trainer, feed, config
        self._collector = gc.isenabled(), gc.get_freeze_count()
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Call it after the last step: Python's garbage collector is again as it was before training."""
        collecting, frozen = self._collector
        if collecting:
            gc.enable()
        if not frozen:
            gc.unfreeze()

    def pause(self) -> None:
        """Stop the clock of training (validation, a checkpoint), and log the speed so far."""
        self.flush()
        self._paused_at = self._paused_at or time.perf_counter()

    def go_on(self) -> None:
        """Start the clock again, if it was stopped."""
        if self._paused_at is not None:
            self._since = time.perf_counter()
            self.seconds += self._since - self._paused_at
            self._paused_at = None

    def waited(self, seconds: float) -> None:
        """Add seconds, up to now, that the step waited for its data; those in which the clock stood are none of it."""
        self._waited += min(seconds, time.perf_counter() - self._since)

    def checkpointed(self, seconds: float) -> None:
        """Add seconds that a checkpoint blocked training."""
        self._checkpoint_s += seconds

    def add(
        self,
        *,
        step: int,
        loss: Tensor,
        counts: Tensor,
        extra: dict[str, Tensor],
        grad_norm: Tensor,
        lr: float,
        skipped: int,
        loads: Tensor | None = None,
    ) -> None:
        """Add one step. loss, extra: this rank's sums. counts: see `count_tokens`. step: counted from 1.

        extra: a scalar is divided by what the loss is divided by, and logged as train/NAME; a (2,) tensor is a sum and
        what it is divided by itself, logged as NAME, and in no row of a step where there was nothing of it. `loads`:
        global visits (layers, E) of the experts.
        """
        parts = [loss, grad_norm, *extra.values()]
        sums = torch.cat([part.detach().double().reshape(-1) for part in parts])
        known = {"train/lr": lr, "train/skipped": skipped, "extra": {name: v.numel() for name, v in extra.items()}}
        row = step, torch.cat([sums, counts.double(), *_extremes(loads)]), known
        if self._rows and _form(self._rows[-1]) != _form(row):
            self.flush()  # a phase may tell more than the one before, and rows that are read together are of one form
        self._rows.append(row)
        self._steps += 1
        if self._steps == WARM_UP_STEPS:
            gc.collect()
            if not self._collector[1]:
                gc.freeze()
            gc.disable()
        if due(step, self.log_every):
            self.flush()

    def flush(self) -> None:
        """Read what the device holds (its one synchronisation) and log a row for every step since the last time."""
        if not self._rows:
            return
        assert self._trainer is not None
        values = torch.stack([row[1] for row in self._rows])
        self._device = values.device
        sums = self._summed(values).tolist()
        elapsed, self._read, self._flops = time.perf_counter() - self._since, 0.0, 0.0
        logged = [self._row(row, v) for row, v in zip(self._rows, sums, strict=True)]
        logged[-1][1].update(self._usage())
        self.seconds += elapsed
        logged[-1][1].update(self._speed(elapsed, len(logged)))
        for step, metrics in logged:
            self._log(step, metrics)
            for listener in self.listeners:
                listener(step, metrics)
        self._rows.clear()
        self._since, self._waited, self._checkpoint_s = time.perf_counter(), 0.0, 0.0
        gc.collect(1)

    def save(self) -> None:
        """Write everything so far to disk (steps before a checkpoint are not computed again), and stop the clock."""
        self.pause()
        assert self._trainer is not None
        for logger in self._trainer.loggers:
            logger.save()

    def _summed(self, values: Tensor) -> Tensor:
        """Loss and extra metrics are sums over ranks; norms and counts are global already."""
        assert self._trainer is not None
        if self._trainer.world_size > 1:
            world = self._trainer.world_size
            first_count = 2 + sum(self._rows[0][2]["extra"].values())
            scale = torch.ones(values.shape[1], dtype=values.dtype, device=values.device)
            scale[1] = scale[first_count:] = 1.0 / world
            values = sum_over_ranks(values) * scale
        return values

    def _usage(self) -> dict[str, float]:
        """Passes begun and rows left out, by source, over all ranks."""
        usage = sum_over_ranks(self._feed.usage().to(self._device))
        metrics: dict[str, float] = {}
        for name, (epochs, dropped) in zip(self._sources, usage.tolist(), strict=True):
            metrics |= {f"data/{name}/epochs": epochs, f"data/{name}/dropped": dropped}
        return metrics

    def _row(self, row: tuple[int, Tensor, dict[str, Any]], values: list[float]) -> tuple[int, dict[str, float]]:
        step, _, known = row
        sizes = known.pop("extra")
        behind = 2 + sum(sizes.values())
        *counts, read = values[behind:][: 2 + len(self._sources)]
        total = counts[0] or 1.0
        self.tokens += sum(counts[1:])
        self._read += read
        self._flops += read * self._config.flops_per_token(self._feed.row_length_at(step - 1))
        self._by_source = [a + b for a, b in zip(self._by_source, counts[1:], strict=True)]
        metrics = {"train/loss": values[0] / total, "train/grad_norm": values[1], "train/tokens": self.tokens, **known}
        metrics |= _means(sizes, values[2:behind], total)
        metrics |= {f"data/{name}/tokens": n for name, n in zip(self._sources, self._by_source, strict=True)}
        # no expert has a limit, so no token is ever dropped: said because users look for it
        extremes = dict(zip(("moe/load_max", "moe/load_min"), values[behind + len(counts) + 1 :], strict=False))
        return step, metrics | extremes | ({"moe/dropped": 0.0} if extremes else {})

    def _speed(self, elapsed: float, steps: int) -> dict[str, float]:
        assert self._trainer is not None
        speed = {
            "perf/tokens_per_second": self._read / elapsed,
            "perf/data_wait": self._waited / elapsed,
            "perf/checkpoint_s": self._checkpoint_s,
            "perf/memory_gb": _memory_gb(),
            "perf/step_s": elapsed / steps,
        }
        if self.peak_flops:
            speed["perf/mfu"] = self._flops / elapsed / (self.peak_flops * self._trainer.world_size)
        return speed

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log what was measured after a step, a validation for one, in the row of that step."""
        self.flush()
        self._log(step, metrics)

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        assert self._trainer is not None
        self.latest |= metrics
        for logger in self._trainer.loggers:
            logger.log_metrics(metrics | {"tokens": self.tokens} if "train/tokens" not in metrics else metrics, step)

    def say(self, text: str) -> None:
        """A line about an incident, on rank 0's standard error."""
        if self._trainer is None or self._trainer.is_global_zero:
            print(text, file=sys.stderr, flush=True)

    def state(self) -> dict[str, Any]:
        """Running totals for the checkpoint."""
        return {"tokens": self.tokens, "by_source": list(self._by_source), "seconds": self.seconds}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.tokens, self._by_source, self.seconds = state["tokens"], list(state["by_source"]), state["seconds"]


def as_measured(means: Mapping[str, float], count: float) -> Mapping[str, float]:
    """What is logged of means over so many, where a stage has no other form."""
    return means


def validation_metrics(
    sums: Mapping[str, Tensor],
    domains: Mapping[str, tuple[float, int | None]],
    measures: Sequence[str] | None = None,
    told: Callable[[Mapping[str, float], float], Mapping[str, float]] = as_measured,
) -> dict[str, float]:
    """Metrics from each domain's sums on this rank: of the loss, and of what it is divided by. `domains`: weight and
    bytes of the text, None of what is no text. measures: None where the loss is the nll of that text, which is then
    told in other units too; else the names of further sums behind the two, each divided by the second; `told` makes
    the metrics of these means, and of what they were divided by.

    Every rank must call: the sums are added up over ranks, in place.
    """
    metrics, weighted, weights = {}, 0.0, 0.0
    for domain, total in sums.items():
        summed, count, *further = sum_over_ranks(total).tolist()
        if not count:  # nothing of it could be measured, which is no loss of 0
            continue
        loss = summed / count
        weight, size = domains[domain]
        metrics[f"valid/{domain}/loss"] = loss
        if measures is None and size is not None:
            metrics[f"valid/{domain}/perplexity"] = math.exp(min(loss, 700.0))
            metrics[f"valid/{domain}/bits_per_byte"] = summed / math.log(2) / max(size, 1)
        means = {name: value / count for name, value in zip(measures or (), further, strict=True)}
        metrics |= {f"valid/{domain}/{name}": value for name, value in (told(means, count) if means else {}).items()}
        weighted, weights = weighted + weight * loss, weights + weight
    return {**metrics, "valid/loss": weighted / weights} if weights else metrics


def _means(sizes: Mapping[str, int], values: Sequence[float], total: float) -> dict[str, float]:
    """Means of sums that stand one after the other: by `total`, or by the number that stands behind a sum."""
    means, at = {}, 0
    for name, size in sizes.items():
        if size == 1:
            means[f"train/{name}"] = values[at] / total
        elif values[at + 1]:
            means[name] = values[at] / values[at + 1]
        at += size
    return means


def _form(row: tuple[int, Tensor, dict[str, Any]]) -> tuple[list[tuple[str, int]], int]:
    """What stands where in a row: names and sizes of what is told besides, and the number of all values."""
    return [*row[2]["extra"].items()], row[1].numel()


def _extremes(loads: Tensor | None) -> list[Tensor]:
    """(2,) float64: the greatest and the least visits of an expert in any layer, as shares of the mean; or nothing."""
    if loads is None:
        return []
    shares = loads.double() / loads.double().mean(-1, keepdim=True).clamp(min=1e-9)
    return [torch.stack([shares.max(), shares.min()])]


def _memory_gb() -> float:
    """Peak memory: of the device's allocator on CUDA, of the process elsewhere."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # absent on Windows, where only CUDA runs

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
