"""Fine-tuning steps through our own stages and Trainer, beside a compiled transformers loop and TRL where it is there.

The same model with the same weights sees the same conversations (`conversations.py`, of random ids) on every side:
packed rows, and padded pairs where transformers' users pad. `first_loss` of both is compared before theirs is timed:
the two must agree to the rounding of the products. `tokens_per_s` counts no padding. MFU counts the FLOPs of a step as
it must be computed: an adapter's has no gradients of the frozen weights, a live reference is one more forward pass.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from benchmarks import gpu_finetune_peers as peers
from benchmarks.gpu_finetune_inputs import BATCHES, Inputs, made_inputs
from benchmarks.gpu_sizes import Sizes
from lifecycle import config
from lifecycle.batch import Cursor, StepBatch
from lifecycle.config.signature import Walk
from lifecycle.duration import Timeline
from lifecycle.hardware.device_specs import peak_flops
from lifecycle.model import ModelConfig, build
from lifecycle.model.lora import Adapter
from lifecycle.optim import AdamW, Schedule
from lifecycle.stages.base import Stage
from lifecycle.stages.dpo import Dpo
from lifecycle.stages.preference.settings import PreferenceKeys
from lifecycle.stages.run.setup import ParentWeights, Setup
from lifecycle.stages.sft import Sft
from lifecycle.stages.step.optimization import OptimizationKeys

Kind = Literal["sft", "lora", "dpo", "dpo_cached"]
WARM = 3
"""Steps that are not timed."""

WORK = {"sft": 1.0, "lora": 2 / 3, "dpo": 4 / 3, "dpo_cached": 1.0}
"""FLOPs of a step as parts of those of forward pass and both gradients."""

TOLERANCE = {"sft": 3e-4, "lora": 3e-4, "dpo": 1e-2, "dpo_cached": 1e-2}
"""Relative difference of the two first losses, of bf16 products: a mean over all tokens, and one over few pairs, of
which each is a sum over some hundred tokens."""

SPREAD = 0.1
"""Standard deviation of the weights: large enough that what a position sees moves its loss."""


def finetune(sizes: Sizes, kind: Kind, model: str | None) -> Iterator[dict[str, Any]]:
    """One kind of step on all sides. model: its config by name; None: that of the sizes, as always on a CPU."""
    shape = sizes.config()
    if model is not None and sizes.device.type == "cuda":
        shape = config.build(config.compose([f"model={model}"]).model)
    shape = replace(shape, init_std=SPREAD)
    inputs = made_inputs(sizes, shape, pairs=kind.startswith("dpo"))
    yield {"ours": (mine := rates(sizes, shape, kind, inputs, ours(sizes, shape, kind, inputs)))}
    theirs = peers.Loop(sizes, shape, kind, inputs)
    agree(mine["first_loss"], theirs.first_loss(), within=TOLERANCE[kind])
    yield {"hf": (found := rates(sizes, shape, kind, inputs, theirs.run(WARM, steps(sizes))))}
    yield {"ratio": ratio(mine, found)}
    del theirs
    if kind in ("sft", "dpo") and importlib.util.find_spec("trl") is not None:
        found = peers.trl(sizes, shape, kind, inputs, WARM, steps(sizes))
        yield {"trl": found, "ratio_trl": ratio(mine, found)}


def steps(sizes: Sizes) -> int:
    """That are timed."""
    return 6 * sizes.steps


def agree(ours: float, theirs: float, *, within: float) -> None:
    """Raise RuntimeError for first losses that are not those of the same model on the same rows."""
    if not abs(ours - theirs) <= within * abs(theirs):
        raise RuntimeError(
            f"the first loss is {ours} here and {theirs} there: not the same step, so the loop is not timed"
        )


def ratio(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Of our speed, and of our peak memory where it is known, to theirs."""
    found = {"speed": mine["tokens_per_s"] / theirs["tokens_per_s"]}
    if "memory_gb" in mine:
        found["memory"] = mine["memory_gb"] / theirs["memory_gb"]
    return {name: round(value, 2) for name, value in found.items()}


def rates(sizes: Sizes, shape: ModelConfig, kind: Kind, inputs: Inputs, measured: dict[str, float]) -> dict[str, Any]:
    """Of the steps behind the warm-up: `measured` has their seconds, and what else is to be told."""
    taken = [step % BATCHES for step in range(WARM, WARM + steps(sizes))]
    seconds = measured["seconds"]
    tokens = sum(inputs.tokens[at] for at in taken)
    found: dict[str, Any] = {
        "tokens_per_s": round(tokens / seconds),
        "trained_per_s": round(sum(inputs.trained[at] for at in taken) / seconds),
    }
    if kind.startswith("dpo"):
        found["pairs_per_s"] = round(sum(len(inputs.parts[at]) for at in taken) / 2 / seconds, 1)
    peak = peak_flops(torch.cuda.get_device_name(), torch.bfloat16) if sizes.device.type == "cuda" else None
    if peak:
        length = sum(map(sum, (map(len, part) for parts in inputs.parts for part in parts)))
        length //= sum(map(len, inputs.parts))
        found["mfu"] = round(WORK[kind] * tokens * shape.flops_per_token(length) / seconds / peak, 4)
    return found | {name: value for name, value in measured.items() if name != "seconds"}


# -- ours


def ours(sizes: Sizes, shape: ModelConfig, kind: Kind, inputs: Inputs) -> dict[str, float]:
    """Seconds of the timed steps, peak memory, the first loss."""
    peers.reset(sizes)
    with tempfile.TemporaryDirectory() as folder:
        clock, kept, count = Clock(sizes), Losses(), WARM + steps(sizes)
        trainer = pl.Trainer(
            accelerator="gpu" if sizes.device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if sizes.device.type == "cuda" else "32-true",
            max_steps=count,
            max_epochs=-1,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            logger=kept,
            callbacks=[clock],
        )
        made = made_stage(sizes, shape, kind, Path(folder), count)
        trainer.fit(made, Steps(inputs.micro, count, sizes.row))
    return {"seconds": clock.seconds, "first_loss": kept.first, "warm_up_s": clock.warm_up} | peers.memory(sizes)


def made_stage(sizes: Sizes, shape: ModelConfig, kind: Kind, folder: Path, count: int) -> Stage:
    """As a run makes it. A live reference has other weights than the policy, so that the first loss says something."""
    optimizer = AdamW(lr=1e-5, embedding_lr=None, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, grad_clip=1.0)
    schedule = Schedule(name="constant", min_ratio=1.0, warmup_steps=0)
    keys = OptimizationKeys(optimizer=optimizer, schedule=schedule, max_skipped=0, max_norm_ratio=None)
    on_gpu, read = sizes.device.type == "cuda", lambda: build(shape, seed=1).state_dict()
    other = read if kind != "dpo" else lambda: build(shape, seed=2).state_dict()
    setup = Setup(
        timeline=Timeline.even(count, rows=sizes.micro[0] // sizes.row, row_length=sizes.row),
        seed=1,
        source_names=["made"],
        domains={},
        validate_every=None,
        log_every=count,
        bf16=on_gpu,
        compile=on_gpu,
        activation_checkpointing=False,
        attention="auto",
        peak_flops=None,
        read_weights=read,
        parent=ParentWeights(read=other, sha256=lambda: kind, cache=lambda: folder),
    )
    if kind.startswith("dpo"):
        chosen = config.compose(["stage=dpo"]).stage
        given = {name: chosen[name] for name in PreferenceKeys.__dataclass_fields__}
        given["reference"] = "live" if kind == "dpo" else "cached"
        preference = Walk().construct(PreferenceKeys, given, ())
        return Dpo(model=shape, optimization=keys, preference=preference, setup=setup)
    if kind == "lora":
        setup = replace(setup, adapter=adapter())
    return Sft(model=shape, optimization=keys, loss="nll", setup=setup)


def adapter() -> Adapter:
    """That of conf/adapter/lora.yaml."""
    made: Adapter = config.build(config.compose(["stage=sft", "adapter=lora"]).adapter)
    return made


class Clock(pl.Callback):
    """seconds: of the timed steps. warm_up: of those before, building and compilation included."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes, self._begun = sizes, time.perf_counter()
        self.seconds = self.warm_up = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step in (WARM, WARM + steps(self._sizes)):
            self._sizes.wait()
            taken = time.perf_counter() - self._begun
            self._begun += taken
            if trainer.global_step == WARM:
                self.warm_up = round(taken, 1)
            else:
                self.seconds = taken


class Losses(pl.loggers.Logger):
    """Keeps the loss of the first step."""

    name, version, first = "kept", "", math.nan

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step == 1:
            self.first = metrics["train/loss"]

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class Steps(pl.LightningDataModule):
    """The batches in turn, as a `DataFeed`: nothing is read or packed meanwhile."""

    def __init__(self, micro: Sequence[Any], count: int, row_length: int) -> None:
        super().__init__()
        self._micro, self._count, self._row_length = micro, count, row_length

    def whole_run(self) -> Iterator[StepBatch]:
        for step in range(self._count):
            yield StepBatch(step=step, micro=[self._micro[step % BATCHES]], cursor=Cursor(step=step + 1, streams={}))

    def __iter__(self) -> Iterator[StepBatch]:
        return self.whole_run()

    def train_dataloader(self) -> Any:
        return self

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch

    def consumed(self, cursor: Cursor) -> None:
        pass

    def is_last(self, step: int) -> bool:
        return step >= self._count

    def fails_after(self, step: int) -> bool:
        return False

    def row_length_at(self, step: int) -> int:
        return self._row_length

    def usage(self) -> torch.Tensor:
        return torch.zeros(1, 2, dtype=torch.float64)

    def val_dataloader(self) -> dict[str, list[Any]]:
        return {}
