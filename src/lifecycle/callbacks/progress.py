"""The progress display of a run: a live panel on a terminal, a plain line every few seconds in a log.

It only reads numbers that the stage has already brought to the host (`stage.meter.latest`), so no device waits for it.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lifecycle.stages.base import Stage

PANEL_SECONDS = 0.25
WINDOW_STEPS = 50


class Pace:
    """Steps and their clock: seconds a step over the last steps, the first ones of a process (compilation) left out."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._ends: deque[float] = deque(maxlen=WINDOW_STEPS + 1)

    def step_ended(self) -> None:
        """Call after every step."""
        self._ends.append(time.monotonic())

    @property
    def elapsed(self) -> float:
        """Seconds since training began in this process."""
        return time.monotonic() - self.started

    def seconds_left(self, steps: int) -> float | None:
        """A guess from the last steps; None before the second."""
        if len(self._ends) < 2:
            return None
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) * steps


class ProgressDisplay(Callback):
    """Shows stage, step, tokens, loss, speed, data wait, time left, last checkpoint and validation, on rank 0.

    `every_seconds` is the pace of plain lines; on a terminal the panel is redrawn four times a second at most.
    """

    def __init__(self, *, every_seconds: float, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console()
        self._every = every_seconds
        self._live: Live | None = None
        self._pace = Pace()
        self._shown_at = -math.inf
        self._checkpoint: int | None = None
        self._held_out: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the panel."""
        self._pace = Pace()
        self._held_out = {k: v for k, v in cast(Stage, pl_module).meter.latest.items() if k.startswith("valid/")}
        if trainer.is_global_zero and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
            self._show(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One step more."""
        self._pace.step_ended()
        if not trainer.is_global_zero:
            return
        held_out = {k: v for k, v in cast(Stage, pl_module).meter.latest.items() if k.startswith("valid/")}
        wanted = PANEL_SECONDS if self._live else self._every
        # New perplexities are worth a line of their own.
        if held_out != self._held_out or time.monotonic() - self._shown_at >= wanted:
            self._held_out = held_out
            self._show(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the step of the last checkpoint."""
        self._checkpoint = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last state stays on the screen."""
        if trainer.is_global_zero:
            self._show(trainer, pl_module)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the panel before the error is printed."""
        self._close()

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown_at = time.monotonic()
        stage, step = cast(Stage, pl_module), trainer.global_step
        total = stage.setup_facts.timeline.steps
        known = total > step or trainer.max_steps == total
        facts = Moment(
            stage=as_typed(type(pl_module).__name__),
            step=step,
            total=total if known else None,
            about=trainer.max_steps != total,
            elapsed=self._pace.elapsed,
            left=self._pace.seconds_left(total - step) if known else None,
            checkpoint=self._checkpoint,
            metrics=stage.meter.latest,
            on_cpu=pl_module.device.type == "cpu",
        )
        if self._live is not None:
            self._live.update(facts.panel(self._console.width), refresh=True)
        else:
            self._console.print(facts.line(), highlight=False, soft_wrap=True)


class Moment:
    """One moment of a run, as words. Every metric may be missing.

    total: steps of the run; None where it goes on behind the estimate. about: whether they are an estimate, as of a run
    that ends with the last row of its data: how many rows that is, is known when they are packed.
    """

    def __init__(
        self,
        *,
        stage: str,
        step: int,
        total: int | None,
        about: bool = False,
        elapsed: float,
        left: float | None,
        checkpoint: int | None,
        metrics: Mapping[str, float],
        on_cpu: bool,
    ) -> None:
        self.stage, self.step, self.total, self.about = stage, step, total, about
        self.elapsed, self.left = elapsed, left
        self.checkpoint, self.metrics, self.on_cpu = checkpoint, metrics, on_cpu

    def training(self) -> list[tuple[str, str]]:
        """(name, value) of what training reports."""
        share = "of measured peak" if self.on_cpu else "MFU"
        return self._present(
            ("loss", "train/loss", "{:.3f}"),
            ("lr", "train/lr", "{:.2e}"),
            ("grad norm", "train/grad_norm", "{:.2f}"),
            ("tokens", "train/tokens", "{:,.0f}"),
            ("tokens/s", "perf/tokens_per_second", "{:,.0f}"),
            (share, "perf/mfu", "{:.1%}"),
            ("data wait", "perf/data_wait", "{:.1%}"),
            ("memory GB", "perf/memory_gb", "{:.1f}"),
        )

    def validation(self) -> list[tuple[str, str]]:
        """(domain, perplexity) of the last validation; of a loss that has none, (domain and measure, value)."""
        if self._unit:
            names = [key for key in self._held_out if key.endswith("/perplexity")]
            return self._present(*((key.split("/", 1)[1].removesuffix("/perplexity"), key, "{:,.1f}") for key in names))
        return self._present(*((key.split("/", 1)[1].replace("/", " "), key, "{:.3f}") for key in self._held_out))

    @property
    def _held_out(self) -> list[str]:
        """What was measured by domain, without the ends of intervals."""
        names = [key for key in self.metrics if key.startswith("valid/") and key.count("/") > 1]
        return [key for key in names if not key.endswith(("_low", "_high"))]

    @property
    def _unit(self) -> str:
        return "ppl " if any(key.endswith("/perplexity") for key in self._held_out) else ""

    def _present(self, *wanted: tuple[str, str, str]) -> list[tuple[str, str]]:
        values = {**self.metrics}
        if "train/tokens" not in values and "tokens" in values:
            values["train/tokens"] = values["tokens"]
        return [(name, form.format(values[key])) for name, key, form in wanted if key in values]

    def line(self) -> str:
        """For a log: one line, no cursor movement."""
        parts = [f"{self.stage} step {self._step('/')}", *(f"{name} {value}" for name, value in self.training())]
        if self.validation():
            parts.append(f"valid {self._unit}" + ", ".join(f"{name} {value}" for name, value in self.validation()))
        if self.checkpoint is not None:
            parts.append(f"checkpoint {self.checkpoint:,}")
        parts.append(f"{clock(self.elapsed)} gone")
        if self.left is not None:
            parts.append(f"{clock(self.left)} left")
        return " | ".join(parts)

    def _step(self, of: str) -> str:
        total = "" if self.total is None else f"{of}about {self.total:,}" if self.about else f"{of}{self.total:,}"
        return f"{self.step:,}{total}"

    def panel(self, width: int) -> RenderableType:
        """For a terminal of that many columns: no line is broken inside a fact."""
        left = "…" if self.left is None else clock(self.left)
        words = [self.stage, f"step {self._step(' / ')}", f"{clock(self.elapsed)} gone", f"{left} left"]
        beside = sum(len(word) + 2 for word in words)
        bar = ProgressBar(total=self.total, completed=self.step, width=max(4, min(36, width - beside)), pulse=False)
        head = Table.grid(padding=(0, 2), pad_edge=False)
        head.add_row(
            Text(words[0], style="bold"),
            bar if self.total is not None else "",
            words[1],
            Text(words[2], style="dim"),
            Text.assemble((left, "bold"), " left") if self.total is not None else "",
        )
        rows: list[RenderableType] = [head, _facts(self.training())]
        last = [("last checkpoint", f"step {self.checkpoint:,}")] if self.checkpoint is not None else []
        held_out = [(f"{self._unit}{name}", value) for name, value in self.validation()]
        if held_out or last:
            rows.append(_facts([*held_out, *last]))
        return Padding(Group(*rows), (1, 0))


def _facts(facts: list[tuple[str, str]]) -> Columns:
    return Columns([Text.assemble((f"{name} ", "dim"), (value, "cyan")) for name, value in facts], padding=(0, 3))


def clock(seconds: float) -> str:
    """h:mm:ss, or days and hours for a long time."""
    whole = int(seconds)
    if whole >= 2 * 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def as_typed(name: str) -> str:
    """A stage as `stage=` takes it, from the name of its class: DistillReason is distill_reason."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
