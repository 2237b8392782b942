"""The Lightning Trainer of a run: device, strategy and precision. Steps and validation are the stages' own."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from typing import Literal

import lightning.pytorch as pl
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, Strategy

from lifecycle import config
from lifecycle.callbacks.saving import SaveOnEvents, periodic
from lifecycle.callbacks.waiting import ShortWaits
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.checkpoint.sharded import ShardedStrategy
from lifecycle.data.module import DataModule
from lifecycle.errors import UserError
from lifecycle.hardware import Choice, Hardware
from lifecycle.runs.data import Length
from lifecycle.runs.plan import RunPlan
from lifecycle.runs.resume import Start
from lifecycle.stages.base import Stage
from lifecycle.system.ranks import started_by_srun


def check_tasks(hardware: Hardware) -> None:
    """Raise UserError where srun has started another number of processes than the run is of."""
    if not started_by_srun():
        return
    tasks, wanted = int(os.environ["SLURM_NTASKS"]), hardware.world_size()
    if tasks != wanted or (tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ):
        per_node, nodes = hardware.devices_per_node(), hardware.num_nodes
        raise UserError(
            f"srun has started {tasks} task{'s' if tasks > 1 else ''}, and hardware.devices={per_node} with "
            f"hardware.num_nodes={nodes} are {wanted}, one a device: start it with srun --nodes={nodes} "
            f"--ntasks-per-node={per_node}, or set the two keys to what srun is given"
        )


def trainer_of(
    plan: RunPlan, length: Length, start: Start, *, loggers: Sequence[Logger], watching: Sequence[Callback]
) -> pl.Trainer:
    """The Trainer of a run. watching: callbacks beside those of the config, of checkpoints and of events."""
    kept, folder = plan.config.checkpoint, plan.folder
    return build_trainer(
        plan.hardware,
        start.choice,
        total_steps=-1 if length.last is None else length.last,
        callbacks=[
            *config.build(plan.config.callbacks, folder=folder.path),
            *watching,
            ShortWaits(),
            SaveOnEvents(folder=folder.checkpoints, every_steps=kept.every_steps),
            periodic(folder.checkpoints, kept.every_steps),
        ],
        loggers=loggers,
        writer=CommittedCheckpointIO(keep_last=kept.keep_last, milestones=tuple(kept.milestones)),
        deterministic=plan.config.deterministic,
    )


def build_trainer(
    hardware: Hardware,
    choice: Choice,
    *,
    total_steps: int,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    writer: CommittedCheckpointIO,
    deterministic: bool,
) -> pl.Trainer:
    """A Trainer that only loops: stages validate, clip and log by themselves, the data module deals the data out.

    total_steps: at most; -1: until the data ends.
    """
    _quieten()
    sharded = hardware.strategy == "fsdp"
    trainer = pl.Trainer(
        accelerator="gpu" if hardware.device_type() == "cuda" else "cpu",
        devices=hardware.devices_per_node(),
        num_nodes=hardware.num_nodes,
        strategy=_strategy(hardware),
        precision="bf16-mixed" if choice.precision == "bf16" and not sharded else "32-true",
        max_steps=total_steps,
        max_epochs=-1,
        limit_val_batches=0,  # a stage validates inside its step, so that a checkpoint follows its own validation
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        logger=list(loggers),
        plugins=[writer, *_environment()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        deterministic=deterministic,
    )
    # Lightning's SIGTERM handler starts a collective wherever it interrupts; ours are set by `run` and `SaveOnEvents`.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def fit(trainer: pl.Trainer, stage: Stage, data: DataModule, *, checkpoint: str | None) -> None:
    """Train, from `checkpoint` on or anew. Ctrl-C is a KeyboardInterrupt, of which Lightning makes a SystemExit."""
    try:
        trainer.fit(stage, data, ckpt_path=checkpoint)
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def _environment() -> list[ClusterEnvironment]:
    """Lightning finds out by itself who started the processes, but takes every job of SLURM for one of srun: in a batch
    script, or a shell on a node, it would wait for ranks that are never started."""
    if TorchElasticEnvironment.detect() or started_by_srun() or "SLURM_NTASKS" not in os.environ:
        return []
    return [LightningEnvironment()]


def _quieten() -> None:
    """Leave the terminal to the run: Lightning's greetings, and warnings about what is meant here, are left out."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # a login node is no fault
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.` is deprecated")


def _strategy(hardware: Hardware) -> Strategy | Literal["auto"]:
    processes = hardware.world_size()
    backend: Literal["nccl", "gloo"] = "nccl" if hardware.device_type() == "cuda" else "gloo"
    if hardware.strategy == "fsdp":
        return ShardedStrategy(data_parallel_size=processes, tensor_parallel_size=1, process_group_backend=backend)
    if hardware.strategy == "ddp" or processes > 1:
        return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True)
    if processes < 1:
        raise UserError("hardware.devices is auto, but no device was found: set hardware.devices=1 or hardware=cpu")
    return "auto"
