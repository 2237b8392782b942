"""Whole steps of every stage on a rehearsed GPU: nothing is mixed, nothing waits but where WAITS says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.model.layers.test_attention import older
from tests.model.variants import VARIANTS
from tests.rehearsal.claims import Device, rehearsal
from tests.stages.test_step import STEPS, Batches, padded, split, stage, whole
from torch import Tensor

from lifecycle.batch import TokenBatch
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.model import ModelConfig
from lifecycle.model.layers import attention
from lifecycle.optim import AdamW, Muon, Schedule
from lifecycle.stages.base import Stage
from lifecycle.stages.midtrain import Ewc, Midtrain
from lifecycle.stages.pretrain import Pretrain
from lifecycle.stages.step.optimization import OptimizationKeys

ADAMW = AdamW(lr=1e-2, embedding_lr=None, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, grad_clip=1.0)
MUON = Muon(
    lr=1e-2,
    adamw_lr=None,
    embedding_lr=None,
    weight_decay=0.1,
    momentum=0.9,
    nesterov=True,
    newton_schulz_steps=5,
    scale="match_rms_adamw",
    betas=(0.9, 0.95),
    eps=1e-8,
    grad_clip=1.0,
)
SETUP = replace(
    stage().setup_facts, bf16=True, attention="sdpa", validate_every=2, domains={"a": (1.0, 100), "b": (0.5, 50)}
)
CONSTANT = Schedule(name="constant", min_ratio=1.0, warmup_steps=0)


def keys(optimizer: AdamW | Muon) -> OptimizationKeys:
    return OptimizationKeys(optimizer=optimizer, schedule=CONSTANT, max_skipped=0, max_norm_ratio=5.0)


def pretrain(model: ModelConfig, optimizer: AdamW | Muon, setup: Any = SETUP) -> Stage:
    return Pretrain(model=model, optimization=keys(optimizer), setup=setup, z_loss=1e-4)


def midtrain(model: ModelConfig, optimizer: AdamW | Muon, setup: Any = SETUP) -> Stage:
    return Midtrain(
        model=model,
        optimization=keys(optimizer),
        setup=setup,
        ewc=Ewc(strength=1.0, rows=2),
        z_loss=1e-4,
    )


class Data(Batches):
    """With rows to measure on, and rows of the parent."""

    validation: dict[str, list[Any]] | None = None

    def val_dataloader(self) -> dict[str, list[Any]]:
        return self.validation or {"a": whole(7), "b": split(8)}

    def replayed_rows(self, count: int) -> list[TokenBatch]:
        return split(9)[:count]


class Looks(pl.Callback):
    """After each step, before the Trainer takes everything back to the host: where the state is, and in which dtype."""

    def __init__(self) -> None:
        self.found: dict[str, set[str]] = {"device": set(), "dtype": set()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        moments = [v for state in trainer.optimizers[0].state.values() for n, v in state.items() if n != "step"]
        for tensor in (*pl_module.state_dict().values(), *moments):
            self.found["device"].add(tensor.device.type)
            self.found["dtype"].add(str(tensor.dtype))


def fit(
    made: Stage,
    steps: Sequence[list[Any]],
    folder: Path,
    ckpt_path: Path | None = None,
    first: int = 0,
    validation: dict[str, list[Any]] | None = None,
    **more: Any,
) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed" if made.setup_facts.bf16 else "32-true",
        max_steps=len(steps),
        max_epochs=-1,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        logger=False,
        **({"enable_checkpointing": False} | more),
    )
    data = Data(steps)
    data.first, data.validation = first, validation
    trainer.fit(made, data, ckpt_path=ckpt_path)
    assert trainer.global_step == len(steps)
    return trainer


@pytest.fixture
def device() -> Iterator[Device]:
    with rehearsal() as made:
        yield made


CASES: dict[str, tuple[Any, str, AdamW | Muon, Any, dict[str, Any]]] = {
    "pretrain": (pretrain, "llama", ADAMW, whole, {}),
    "pretrain in micro-batches, Muon": (pretrain, "qwen3", MUON, split, {}),
    "pretrain with padding, fp32": (pretrain, "softcap", ADAMW, padded, {"bf16": False}),
    "a sliding window, blocks computed again": (pretrain, "mistral", ADAMW, split, {"activation_checkpointing": True}),
    "experts, latent attention": (pretrain, "deepseek_v3", MUON, split, {}),
    "experts in fp32": (pretrain, "qwen2_moe", ADAMW, whole, {"bf16": False}),
    "boundaries of documents": (pretrain, "llama", ADAMW, split, {"attention": "varlen"}),
    "boundaries, a window, latent attention": (pretrain, "yarn", ADAMW, split, {"attention": "varlen"}),
    "midtrain, EWC": (midtrain, "llama", ADAMW, split, {}),
    "midtrain, EWC, experts, Muon": (midtrain, "glm4_moe", MUON, whole, {}),
}


def varlen(*arguments: Any, **options: Any) -> Tensor:
    """Stands for the kernel: it takes its boundaries there, as 32-bit integers, and waits for nothing."""
    assert all(x.is_cuda and x.dtype == torch.bfloat16 for x in arguments[:3])
    assert all(x.is_cuda and x.dtype == torch.int32 for x in arguments[3:5])
    return older(*arguments, **options)


@pytest.mark.parametrize("case", CASES)
def test_steps_and_validations_run(case: str, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    monkeypatch.setattr(attention, "varlen_is_told_groups", lambda: False)
    kind, model, optimizer, form, changes = CASES[case]
    made = kind(VARIANTS[model], optimizer, replace(SETUP, log_every=STEPS, **changes))
    looks = Looks()
    fit(made, [form(s) for s in range(STEPS)], tmp_path, callbacks=[looks])
    assert looks.found == {"device": {"cuda"}, "dtype": {"torch.float32"}}
    expected = {
        "stages/step/collectives.py any_rank": STEPS + 2 * 4,  # two validations of four micro-batches
        "stages/step/metrics.py validation_metrics": 2 * 2,
        "stages/step/metrics.py flush": 2,
        "stages/step/metrics.py _usage": 2,
    }
    assert {place: n for place, n in device.waits.items() if not place.startswith("model/")} == expected


def test_a_run_is_saved_and_goes_on_there(device: Device, tmp_path: Path) -> None:
    steps = [split(s) for s in range(STEPS)]
    whole_run = midtrain(VARIANTS["deepseek_v3"], MUON)
    fit(whole_run, steps, tmp_path / "whole")
    writer = CommittedCheckpointIO(async_save=False)
    first = fit(midtrain(VARIANTS["deepseek_v3"], MUON), steps[:2], tmp_path / "first", plugins=[writer])
    first.save_checkpoint(tmp_path / "step-00000002")
    second = midtrain(VARIANTS["deepseek_v3"], MUON)
    fit(second, steps, tmp_path / "second", plugins=[writer], ckpt_path=tmp_path / "step-00000002", first=2)
    assert second.model is not None and whole_run.model is not None
    wanted, found = (model.state_dict().values() for model in (whole_run.model, second.model))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
