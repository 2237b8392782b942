"""The abstract stage: model, optimizer, and the arithmetic of one step.

One call of `training_step` is one optimizer step (manual optimization). `Stage.take_step` does for every stage:

    count trained tokens over micro-batches and ranks  ->  gradients (`gradients.py`), clipped
    ->  all finite? step : skip  ->  validate if due, stop if asked

So splitting a step differently changes nothing, and `global_step` means what users think.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from lifecycle.batch import DataFeed, Micro, PairBatch, StepBatch, with_shared_prompts
from lifecycle.bounds import due
from lifecycle.errors import UserError
from lifecycle.model import Decoder, DocumentMask, ModelConfig
from lifecycle.model.adapters import seed_dropout
from lifecycle.model.layers.attention import Kernel
from lifecycle.stages.beside.critic import Critic
from lifecycle.stages.beside.frozen import HeldBeside
from lifecycle.stages.run.module import Module
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.collectives import any_rank, count_tokens
from lifecycle.stages.step.gradients import Sums, Told, Updates, add_gradients, added
from lifecycle.stages.step.held_out import held_out_sums
from lifecycle.stages.step.metrics import Meter, as_measured, validation_metrics
from lifecycle.stages.step.on_device import on_device
from lifecycle.stages.step.optimization import Optimization, OptimizationKeys
from lifecycle.stages.step.penalty import Penalty
from lifecycle.stages.step.watched import Best, Carried, GuardState, carried_in

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer

LossSum = Callable[[Micro, DocumentMask | None], tuple[Tensor, dict[str, Tensor]]]


class Stage(Module, ABC):
    """What every stage shares. Subclasses are final: they define `training_step` and `validation_step`, and override
    no method that has a body here (`tests/stages/test_stages.py`); what only some add is an object, as `penalty`.

    optimization: optimizer, schedule and limits of bad steps. penalty: a term that depends on the weights alone, whose
    gradient is added once a step. beside: frozen networks and the like, in no checkpoint. critic: is trained beside the
    network, and in every checkpoint. None for none. carried: what a checkpoint holds of the stage besides, by name.
    look_over: is given all held-out micro-batches of a domain before the first is validated, on every rank.

    What a class declares for the run. views: those that it can train on; empty: any. starts_from_parent: whether it
    needs `init_from`. ends_in_score: its network ends in a score, not in a vocabulary. fp8: whether it may multiply so.
    takes_over: the dataclasses whose keys it has and the run reads for it, those of `inheritance.py` and
    `TrainedTokens`. guard_actions: actions that a forgetting guard may take. weight_copies: key of `stage` that may be
    null -> copies of the whole weights that every device keeps where it is set. frozen_copies: copies of the parent's
    weights that are held frozen beside its own, trained_copies: fp32 numbers of each weight that it keeps to train
    others. faults: lines on values that do not work together. All three get the whole config in plain values. measures:
    on held-out data beside the loss; None where that is the likelihood of text. told: what is logged of it.
    """

    views: ClassVar[frozenset[str]] = frozenset()
    starts_from_parent: ClassVar[bool] = False
    ends_in_score: ClassVar[bool] = False
    fp8: ClassVar[bool] = False
    takes_over: ClassVar[tuple[type, ...]] = ()
    guard_actions: ClassVar[frozenset[str]] = frozenset({"rate", "restore"})
    weight_copies: ClassVar[Mapping[str, int]] = {}
    frozen_copies: ClassVar[staticmethod[[Mapping[str, Any]], int]] = staticmethod(lambda config: 0)
    trained_copies: ClassVar[staticmethod[[Mapping[str, Any]], int]] = staticmethod(lambda config: 0)
    measures: Sequence[str] | None = None
    told: ClassVar[staticmethod[..., Mapping[str, float]]] = staticmethod(as_measured)
    faults: ClassVar[staticmethod[[Mapping[str, Any]], list[str]]] = staticmethod(lambda config: [])

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: OptimizationKeys,
        setup: Setup,
        penalty: Penalty | None = None,
        beside: HeldBeside | None = None,
        critic: Critic | None = None,
        carried: Mapping[str, Carried] | None = None,
        look_over: Callable[[Sequence[Any]], None] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config, self.setup_facts = model, setup
        self.optimization = Optimization(optimization, setup.timeline)
        self.penalty, self.beside, self.critic, self._look_over = penalty, beside, critic, look_over
        self._rope_theta = model.rope_theta
        self.model: Decoder | None = None
        self.meter = Meter(log_every=setup.log_every, peak_flops=setup.peak_flops, sources=setup.source_names)
        self.guard, self.best = GuardState(), Best()
        self._carried: dict[str, Carried] = {"best": self.best, "meter": self.meter, **(carried or {})}
        self._carried |= {} if penalty is None else {"penalty": penalty}
        self.stop_asked = False  # set by a signal, at any moment, on this rank
        self.preempted = False  # what the ranks agreed on from it, at one place of a step
        self.validation_due = False
        self.measured_at: int | None = None  # steps taken before the last validation of this process
        self._ready_at = time.perf_counter()
        self.strict_loading = setup.adapter is None  # what is frozen is the parent's, and in no checkpoint

    @property
    def network(self) -> Decoder:
        """The model, from `configure_model` on."""
        assert self.model is not None
        return self.model

    @property
    def feed(self) -> DataFeed:
        """The data of the run that trains this stage."""
        return cast(DataFeed, self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Build the weights, sharded at birth where the strategy shards."""
        if self.model is not None:
            return
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]  # of strategies that shard
        self.model = self.setup_facts.build(self.config, mesh)
        for held in (self.beside, self.critic):
            if held is not None:
                held.build(mesh)

    @abstractmethod
    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Take one optimizer step."""

    @abstractmethod
    def validation_step(self, batch: tuple[Any, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2,) float64: the summed loss of one held-out micro-batch, and what it is divided by; behind them, of a stage
        with `measures`, the sums of these."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the config; its rates are set before every step."""
        own = None if self.critic is None else self.critic.keys.lr
        return self.optimization.build(self.network, self.setup_facts.initial_optimizer, self.critic, own)

    def optimizer(self) -> LightningOptimizer:
        """The one optimizer, wrapped so that Lightning counts its steps."""
        return cast("LightningOptimizer", self.optimizers(use_pl_optimizer=True))

    # -- one step

    def take_step(self, batch: StepBatch[Micro], loss_sum: LossSum[Micro]) -> None:
        """One optimizer step on `batch`; `loss_sum` gives a micro-batch's summed loss and summed metrics."""
        self.take_updates(batch, [batch.micro], loss_sum)

    def take_updates(
        self, batch: StepBatch[Any], updates: Updates[Micro], loss_sum: LossSum[Micro], told: Told = dict
    ) -> None:
        """The same for a step that changes the weights several times, once on each of `updates`, in which every rank
        has equally many micro-batches. told: gives further metrics of the step, the same names on every rank."""
        self.enter(batch.step)
        optimizer = self.optimizer()
        rate = self.optimization.set_rates(optimizer.param_groups, batch.step, scale=self.guard.lr_scale)
        taken = []
        for number, micro in enumerate(updates, start=1):
            counts = count_tokens(micro, len(self.setup_facts.source_names), self.device)
            sums = add_gradients(
                self.trainer,
                self.network,
                micro,
                count=counts[0],
                loss_of=lambda one: loss_sum(*self.on_device(one)),
                backward=self.manual_backward,
                penalty=self.penalty,
            )
            sums = sums if self.critic is None else self.critic.alone(self.network, sums, step=batch.step)
            norm = self.optimization.clip(self.parameters())
            self._update(optimizer, batch, sums, norm, last=number == len(updates))
            taken.append((counts, sums, norm))
        self.feed.consumed(batch.cursor)
        counts, sums, norm = added(taken, told())
        self.meter.add(
            step=batch.step + 1,
            loss=sums.loss,
            counts=counts,
            extra=sums.metrics,
            grad_norm=norm,
            lr=rate,
            skipped=self.optimization.skipping.skipped,
            loads=sums.loads,
        )
        self._after(batch)

    def _update(self, optimizer: LightningOptimizer, batch: StepBatch, sums: Sums, norm: Tensor, *, last: bool) -> None:
        """Change the weights, or skip it: weights and optimizer stay then. The last of a step is one of Lightning's
        steps either way."""
        skipping = self.optimization.skipping
        stop = self.stop_asked or self.feed.fails_after(batch.step + 1)  # what is trained is saved before an error
        bad, self.preempted = any_rank(skipping.bad(norm, sums.loss), stop)
        if bad:  # no gradient, no update
            optimizer.zero_grad(set_to_none=True)
            skipping.skip(batch, norm, sums.loss, say=self.meter.say)
        else:
            skipping.take(norm)
            if sums.loads is not None and self.network.adapter is None:
                self.network.move_router_biases(sums.loads)
        (optimizer if last else optimizer.optimizer).step()
        self.network.weights_changed()
        optimizer.zero_grad(set_to_none=True)
        torch.clear_autocast_cache()  # the cached bf16 copies are of the weights before the step

    def enter(self, step: int) -> None:
        """Set rope base and dropout to what they are in step `step` (counted from 0), also in what precedes updates."""
        seed_dropout(self.network, self.setup_facts.seed, step=step, rank=self.global_rank)
        theta = self.setup_facts.timeline.rope_theta(step) or self._rope_theta
        if theta != self.config.rope_theta:
            self.config = replace(self.config, rope_theta=theta)
            self.network.config = self.config

    def _after(self, batch: StepBatch) -> None:
        """Validate if due, and stop when asked to."""
        done = batch.step + 1
        every = self.setup_facts.validate_every
        self.validation_due |= due(done, every) or bool(every and self.feed.is_last(done))
        self.validate_if_due(done)
        if self.preempted or self.feed.is_last(done):
            self.trainer.should_stop = True

    def on_train_batch_start(self, batch: StepBatch, batch_idx: int) -> int | None:
        """Count the time since the last step's hooks as waiting for data; -1 (stop) where a guard has ended the run."""
        self.meter.waited(time.perf_counter() - self._ready_at)
        return -1 if self.trainer.should_stop else None

    def on_train_batch_end(self, outputs: Any, batch: StepBatch, batch_idx: int) -> None:
        """All hooks of the step are done, also checkpoints: from here on the run waits for its data."""
        self.meter.go_on()
        self._ready_at = time.perf_counter()

    # -- validation

    def on_train_start(self) -> None:
        """Prepare the penalty, finish a validation that a preemption interrupted; a preemption here ends the run."""
        if self.beside is not None:
            self.beside.begin(self.device, self.feed)
        if self.penalty is not None:
            self.penalty.begin(self.network.trained_parameters(), self.feed)
        self.meter.start(self.trainer, self.feed, self.config)
        self.validate_if_due(self.global_step)
        self.trainer.should_stop |= self.preempted or self.feed.is_last(self.global_step)
        self._ready_at = time.perf_counter()

    def on_train_end(self) -> None:
        """No step comes after this."""
        self.meter.stop()

    def validate_if_due(self, step: int) -> None:
        """Measure every domain's held-out rows; a preemption in the middle leaves the validation due, but the one after
        the last step goes on to its end."""
        if not self.validation_due:
            return
        self.meter.pause()
        sums = self._held_out_sums(step)
        if sums is not None:
            self.validation_due = False
            self._record(step, sums)
        self.meter.go_on()

    def _held_out_sums(self, step: int) -> dict[str, Tensor] | None:
        """Each domain's sums on this rank, from `validation_step`; None where a preemption cut it short, which it does
        not after the last step. Every rank must call."""

        def cut_short() -> bool:
            _, self.preempted = any_rank(torch.zeros((), dtype=torch.bool, device=self.device), self.stop_asked)
            return self.preempted and not self.feed.is_last(step)

        self.network.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            sums = held_out_sums(
                self.feed.val_dataloader(),
                lambda batch, number: self.validation_step(self.on_device(batch), number),
                before=self._look_over,
                zeros=torch.zeros(2 + len(self.measures or ()), dtype=torch.float64, device=self.device),
                cut_short=cut_short,
            )
        self.network.train()
        return sums

    def _record(self, step: int, sums: dict[str, Tensor]) -> None:
        """Log a validation, keep it for the guard, and remember the best."""
        self.measured_at = step
        metrics = validation_metrics(sums, self.setup_facts.domains, self.measures, told=self.told)
        if not metrics:
            return
        if "valid/loss" in metrics:
            self.best.note(step, metrics["valid/loss"])
        self.guard.measured.append((step, metrics))
        self.meter.log(step, metrics)

    # -- state in a checkpoint, beside weights and optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state that cannot be derived from the config; of the weights, keep those that are trained."""
        self.meter.save()
        if self.network.adapter is not None:
            checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in self._trained()}
        checkpoint["stage"] = {
            **self.optimization.state(self.global_step),
            **self.guard.state(),
            "validation_due": self.validation_due,
            "rope_theta": self.config.rope_theta,
            **{name: one.state() for name, one in self._carried.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        state = checkpoint["stage"]
        if "state_dict" in checkpoint and not self.strict_loading and {*checkpoint["state_dict"]} != {*self._trained()}:
            raise UserError(
                "resume: the checkpoint is not of a run with this adapter; name one of its own, or resume=auto"
            )
        self.guard.restore(state)
        self.validation_due = state["validation_due"]
        self.enter(checkpoint["global_step"] - 1)  # a run may have no step to take, only to validate or to export
        for name, one in self._carried.items():
            one.restore(carried_in(state, name))
        turn = self.optimization.restore(state, checkpoint["global_step"], self.device)
        if turn is not None and self.trainer.is_global_zero:
            self.meter.say(turn)

    def _trained(self) -> list[str]:
        """Names of the trained parameters in the state dict."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def on_device(self, batch: Micro) -> tuple[Micro, DocumentMask | None]:
        """A micro-batch on the stage's device, and which positions of its rows see each other (`step.on_device`)."""
        if self.beside is not None:
            batch = self.beside.looked_up(batch)
        if isinstance(batch, PairBatch) and self.setup_facts.shares_prompts(self.config, self.kernel):
            batch = cast(Micro, with_shared_prompts(batch))
        return on_device(batch, self.device, kernel=self.kernel, compiled=self.setup_facts.compile)

    @cached_property
    def kernel(self) -> Kernel:
        """The attention kernel of the run."""
        return self.setup_facts.kernel(self.device)
