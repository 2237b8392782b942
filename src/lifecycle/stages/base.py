"""The abstract stage: model, optimizer, and the arithmetic of one step.

One call of `training_step` is one optimizer step (manual optimization). `Stage.take_step` does for every stage:

    count trained tokens over micro-batches and ranks  ->  for each micro-batch: loss sum * world / count, backward
    ->  gradients synchronised on the last one only  ->  norm, clip  ->  all finite? step : skip  ->  validate if due

where a model with experts adds its balance loss to each micro-batch's sum, and moves its choice biases after the step;
so splitting a step differently changes nothing, `global_step` means what users think, and a bad batch can be skipped.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from lifecycle.batch import StepBatch, TokenBatch
from lifecycle.bounds import due
from lifecycle.model import Decoder, Documents, ModelConfig, count_pieces
from lifecycle.model.attention import Kernel
from lifecycle.optim import AdamW, Muon, Schedule, clip_gradients
from lifecycle.optim.carry import carry_over
from lifecycle.optim.schedule import of_another_length
from lifecycle.stages.bad_steps import Skipping
from lifecycle.stages.building import build_for, kernel_for
from lifecycle.stages.collectives import (
    any_rank,
    average_whole_gradients,
    count_tokens,
    sum_over_ranks,
    synchronised,
)
from lifecycle.stages.metrics import Meter
from lifecycle.stages.routing import add_routing
from lifecycle.stages.setup import Setup
from lifecycle.stages.validation import held_out_sums, validation_metrics

LossSum = Callable[[TokenBatch, Documents | None], tuple[Tensor, dict[str, Tensor]]]


class Stage(pl.LightningModule):
    """What every stage shares. Subclasses are final: they define `training_step` and `validation_step`.

    `skipping` says which steps are not taken, and when too many were not. starts_from_parent: such a stage cannot begin
    without `init_from`. guard_actions: what a forgetting guard may do in such a run.
    """

    starts_from_parent = False
    guard_actions: frozenset[str] = frozenset({"rate", "restore"})

    def __init__(
        self, *, model: ModelConfig, optimizer: AdamW | Muon, schedule: Schedule, skipping: Skipping, setup: Setup
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config, self.optimizer_spec, self.setup_facts = model, optimizer, setup
        self.skipping = skipping
        self._rope_theta = model.rope_theta
        self._course = schedule.course(setup.timeline.steps, setup.timeline.steps_of, setup.timeline.last_steps_of)
        self.model: Decoder | None = None
        self.meter = Meter(log_every=setup.log_every, peak_flops=setup.peak_flops, sources=setup.source_names)
        self.stop_asked = False  # set by a signal, at any moment, on this rank
        self.preempted = False  # what the ranks agreed on from it, at one place of a step
        self.validation_due = False
        self.rate_scale = 1.0  # what a guard has made of the rate
        self.restore: int | None = None  # the step whose checkpoint a guard ends the run with; 0: none was good
        self.safe_at: int | None = None  # the last step that a guard may go back to
        self._measured: list[tuple[int, dict[str, float]]] = []
        self.best: tuple[float, int] | None = None
        self.improved_at: int | None = None
        self._ready_at = time.perf_counter()

    @property
    def latest(self) -> dict[str, float]:
        """The metrics that were last read from the device, for displays."""
        return self.meter.latest

    def _rate(self, step: int) -> float:
        """What the peak rates are multiplied with: the schedule, the phase of the run, and what a guard decided."""
        planned = min(step, self.total_steps - 1)  # the last row of the data may come a little later
        return self._course(planned) * self.setup_facts.timeline.rate(step) * self.rate_scale

    @property
    def total_steps(self) -> int:
        """The step at which the run ends, as far as it is known before its data comes to an end."""
        return self.setup_facts.timeline.steps

    def is_last(self, step: int) -> bool:
        """Whether the run is done after `step` steps."""
        return self.trainer.datamodule.is_last(step)  # type: ignore[attr-defined]

    # -- building (Lightning's order)

    def configure_model(self) -> None:
        """Build the weights, sharded at birth where the strategy shards."""
        if self.model is not None:
            return
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]  # of strategies that shard
        self.model = build_for(self.setup_facts, self.config, mesh)

    @abstractmethod
    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Take one optimizer step."""

    @abstractmethod
    def validation_step(self, batch: tuple[TokenBatch, Documents | None], batch_idx: int) -> Tensor:
        """(2,) float64: the summed loss and the trained tokens of one held-out micro-batch."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the config; its rates are set before every step."""
        assert self.model is not None
        optimizer = self.optimizer_spec.build(self.model)
        if self.setup_facts.initial_optimizer is not None:
            carry_over(self.setup_facts.initial_optimizer, optimizer)
        return optimizer

    def optimizer(self) -> LightningOptimizer:
        """The one optimizer, wrapped so that Lightning counts its steps."""
        optimizer = self.optimizers(use_pl_optimizer=True)
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    # -- one step

    def take_step(self, batch: StepBatch, loss_sum: LossSum) -> None:
        """One optimizer step on `batch`; `loss_sum` gives a micro-batch's summed loss and summed metrics."""
        self.enter(batch.step)
        optimizer = self.optimizer()
        counts = count_tokens(batch.micro, len(self.setup_facts.source_names), self.device)
        for group in optimizer.param_groups:
            group["lr"] = group["lr_peak"] * self._rate(batch.step)
        total = torch.zeros((), device=self.device)
        extra: dict[str, Tensor] = {}
        loads: Tensor | None = None
        for number, micro in enumerate(batch.micro):
            with synchronised(self.trainer, last=number == len(batch.micro) - 1):
                loss, metrics = loss_sum(*self.on_device(micro))
                loss, loads = add_routing(self.model, loss, metrics, loads)  # type: ignore[arg-type]
                self.manual_backward(loss * (self.trainer.world_size / counts[0]))
            total += loss.detach()
            for name, value in metrics.items():
                extra[name] = extra.get(name, 0) + value
        for name, value in self.add_penalties().items():  # as what is logged is divided by the step's tokens
            extra[name] = value * counts[0] / self.trainer.world_size
        average_whole_gradients(self.trainer, self.model)  # type: ignore[arg-type]
        loads = None if loads is None else sum_over_ranks(loads)
        norm = clip_gradients(self.parameters(), self.optimizer_spec.grad_clip)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        stop = self.stop_asked or data.fails_after(batch.step + 1)  # what is trained is saved before an error leaves
        bad, self.preempted = any_rank(self.skipping.bad(norm, total), stop)
        if bad:  # no gradient, no update: weights and optimizer stay
            optimizer.zero_grad(set_to_none=True)
            self.skipping.skip(batch, norm, total, say=self.meter.say)
        else:
            self.skipping.take(norm)
            if loads is not None:
                self.model.move_router_biases(loads)  # type: ignore[union-attr]
        optimizer.step()
        self.model.weights_changed()  # type: ignore[union-attr]
        optimizer.zero_grad(set_to_none=True)
        torch.clear_autocast_cache()  # the cached bf16 copies are of the weights before the step
        data.consumed(batch.cursor)
        self.meter.add(
            step=batch.step + 1,
            loss=total,
            counts=counts,
            extra=extra,
            grad_norm=norm,
            lr=self._rate(batch.step) * (self.optimizer_spec.lr or 0.0),
            skipped=self.skipping.skipped,
            loads=loads,
        )
        self._after(batch)

    def enter(self, step: int) -> None:
        """The base of the rotary positions is that of step `step` (counted from 0)."""
        theta = self.setup_facts.timeline.rope_theta(step) or self._rope_theta
        if theta != self.config.rope_theta:
            self.config = replace(self.config, rope_theta=theta)
            self.model.config = self.config  # type: ignore[union-attr]

    def add_penalties(self) -> dict[str, Tensor]:
        """Add to the gradients what depends on the weights alone; the penalties by name. A stage may have one."""
        return {}

    def _after(self, batch: StepBatch) -> None:
        """Validate if due, and stop when asked to."""
        done = batch.step + 1
        every = self.setup_facts.validate_every
        if due(done, every) or (every and self.is_last(done)):
            self.validation_due = True
        self.validate_if_due(done)
        if self.preempted or self.is_last(done):
            self.trainer.should_stop = True

    def on_train_batch_start(self, batch: StepBatch, batch_idx: int) -> int | None:
        """What passed since the last step's hooks ended was waiting for data; -1: a guard has ended the run."""
        self.meter.waited(time.perf_counter() - self._ready_at)
        return -1 if self.trainer.should_stop else None

    def on_train_batch_end(self, outputs: Any, batch: StepBatch, batch_idx: int) -> None:
        """All hooks of the step are done, checkpoints too: from here on the run waits for its data."""
        self.meter.go_on()
        self._ready_at = time.perf_counter()

    # -- validation

    def on_train_start(self) -> None:
        """A validation that was cut short by a preemption comes first; one that is cut short here is the end."""
        self.meter.start(self.trainer, self.config)
        self.validate_if_due(self.global_step)
        self.trainer.should_stop |= self.preempted or self.is_last(self.global_step)
        self._ready_at = time.perf_counter()

    def on_train_end(self) -> None:
        """No step comes after this."""
        self.meter.stop()

    def validate_if_due(self, step: int) -> None:
        """Measure every domain's held-out rows; a preemption in the middle leaves the validation due.

        The one after the last step goes on to its end: a run that has taken all its steps is not taken up again.
        """
        if not self.validation_due:
            return
        self.meter.pause()
        sums = held_out_sums(self, step)
        if sums is not None:
            self.validation_due = False
            self._record(step, sums)
        self.meter.go_on()

    def _record(self, step: int, sums: dict[str, Tensor]) -> None:
        """Log a validation, and remember the best."""
        metrics = validation_metrics(sums, self.setup_facts.domains)
        if not metrics:
            return
        loss = metrics.get("valid/loss", math.inf)
        if step and loss < (self.best[0] if self.best else math.inf):  # the parent's own is no step's
            self.best, self.improved_at = (loss, step), step
        self._measured.append((step, metrics))
        self.meter.log(step, metrics)

    def take_measurements(self) -> list[tuple[int, dict[str, float]]]:
        """The validations since the last call: step and metrics."""
        taken, self._measured = self._measured, []
        return taken

    # -- what a checkpoint holds beyond weights and optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what moves and cannot be derived."""
        self.meter.save()
        checkpoint["stage"] = {
            "skipping": self.skipping.state(),
            "validation_due": self.validation_due,
            "rate_scale": self.rate_scale,
            "restore": self.restore,
            "rope_theta": self.config.rope_theta,
            "best": list(self.best) if self.best else None,
            "meter": self.meter.state(),
            "course": self._course.state(self.global_step),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        state = checkpoint["stage"]
        self.skipping.restore(state["skipping"], self.device)
        self.validation_due = state["validation_due"]
        self.rate_scale, self.restore = state["rate_scale"], state.get("restore")
        self.enter(checkpoint["global_step"] - 1)  # a run may have no step to take, only to validate or to export
        self.best = (state["best"][0], state["best"][1]) if state["best"] else None
        self.meter.restore(state["meter"])
        if "course" in state:  # not in checkpoints of older versions
            turn = self._course.restore(state["course"], checkpoint["global_step"])
            if turn and self.trainer.is_global_zero:
                self.meter.say(of_another_length(turn, self.optimizer_spec.lr or 0.0, self.total_steps))

    def on_device(self, batch: TokenBatch) -> tuple[TokenBatch, Documents | None]:
        """A micro-batch on the stage's device, and which of its positions see each other.

        None stands for rows of one document each; compiled code always gets the mask, or it would be compiled twice.
        """
        if batch.single and not self.setup_facts.compile:
            return batch.to(self.device, non_blocking=True), None
        pieces = count_pieces(batch.document_ids)  # here on the CPU, where counting waits for nothing
        moved = batch.to(self.device, non_blocking=True)
        return moved, Documents.from_ids(moved.document_ids, kernel=self.kernel, pieces=pieces)

    @cached_property
    def kernel(self) -> Kernel:
        """The attention kernel of the run."""
        return kernel_for(self.setup_facts, self.device)
