from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from lifecycle.duration import Timeline
from lifecycle.estimate.estimate import BatchShape, CheckpointPlan, Estimate, RunDevice, SourceEstimate, estimate
from lifecycle.estimate.memory import memory_of
from lifecycle.estimate.table import plain, warnings
from lifecycle.hardware import Hardware
from lifecycle.model import ModelConfig, build

GPU = Hardware(
    accelerator="gpu",
    devices=1,
    num_nodes=1,
    precision="bf16",
    strategy="auto",
    compile="auto",
    micro_batch_tokens=32_768,
    peak_tflops=None,
    activation_checkpointing=False,
    workers=4,
    attention="auto",
    fp8=None,
)
MODEL = ModelConfig(
    family="llama",
    layers=20,
    width=1152,
    heads=18,
    kv_heads=6,
    head_dim=64,
    ffn_width=3072,
    vocab_size=49_152,
    max_positions=2048,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    qk_norm=False,
    tied_head=True,
    init_std=0.02,
)
SOURCES = (
    SourceEstimate(name="web", domain="web", weight=3.0, tokens=None, max_epochs=None),
    SourceEstimate(name="medqa", domain="medical", weight=1.0, tokens=2e6, max_epochs=4),
)
STEPS, BATCH = 1000, 524_288


def of(
    *,
    model: ModelConfig = MODEL,
    hardware: Hardware = GPU,
    world_size: int = 1,
    sharded: bool = False,
    micro_rows: int = 16,
    device: str = "a100",
    free_disk: float | None = None,
    kept_copies: int = 0,
    frozen: int = 0,
    repeats: float = 1.0,
) -> Estimate:
    return estimate(
        model,
        timeline=Timeline.even(STEPS, rows=BATCH // 2048, row_length=2048),
        batch=BatchShape(tokens=BATCH, length=2048, micro_rows=micro_rows),
        sources=SOURCES,
        hardware=hardware,
        world_size=world_size,
        sharded=sharded,
        device=RunDevice(name=device),
        checkpoints=CheckpointPlan(keep_last=3, every_steps=30),
        free_disk=free_disk,
        kept_copies=kept_copies,
        frozen=frozen,
        repeats=repeats,
    )


def test_hours_are_work_over_the_share_of_the_peak() -> None:
    found = of()
    work = STEPS * BATCH * MODEL.flops_per_token(2048)
    assert found.hours is not None
    assert found.hours[0.5] == pytest.approx(work / (0.5 * 312e12) / 3600)
    assert set(found.hours) == {0.4, 0.5, 0.6}


def test_twice_the_devices_take_half_the_time_and_half_the_micro_batches() -> None:
    one, two = of(), of(world_size=2)
    assert one.hours is not None and two.hours is not None
    assert two.hours[0.4] == pytest.approx(one.hours[0.4] / 2)
    assert (one.micro_batches, two.micro_batches) == (16, 8)


def test_weights_gradients_and_optimizer_are_sixteen_bytes_a_parameter() -> None:
    memory = of().memory
    assert memory.weights + memory.gradients + memory.optimizer == 16 * MODEL.parameters()
    assert memory.compute_copies == 2 * MODEL.parameters()


def test_copies_of_the_weights_are_in_memory_and_in_every_checkpoint() -> None:
    without, holding = of(), of(kept_copies=2)
    assert holding.memory.total - without.memory.total == 8 * MODEL.parameters()
    assert holding.disk.checkpoint - without.disk.checkpoint == 8 * MODEL.parameters()
    assert "copies of weights that the stage keeps" in plain(holding) and "stage keeps" not in plain(without)


def test_a_frozen_copy_is_in_memory_in_the_compute_type_asks_a_third_of_the_work_and_is_in_no_checkpoint() -> None:
    count = MODEL.parameters()
    without, holding = of(), of(frozen=count)
    assert holding.memory.total - without.memory.total == holding.memory.frozen == 2 * count  # bf16
    assert holding.disk == without.disk and holding.hours is not None and without.hours is not None
    assert holding.hours[0.5] == pytest.approx(without.hours[0.5] * 4 / 3)
    assert of(frozen=count, world_size=2, sharded=True).memory.frozen == 4 * count / 2  # fp32 shards


def test_sharding_divides_the_state_but_not_the_activations() -> None:
    whole, parts = of(world_size=8).memory, of(world_size=8, sharded=True).memory
    assert parts.weights == whole.weights / 8
    assert parts.optimizer == whole.optimizer / 8
    assert parts.activations == whole.activations
    assert parts.gradients == whole.gradients / 8  # of the sum over micro-batches; of one, what is at work is whole
    embedding, block = 49_152 * MODEL.width, (MODEL.parameters() - 49_152 * MODEL.width) / MODEL.layers
    gathered = 2 * (embedding + 2 * block)
    assert parts.compute_copies == pytest.approx(2 * gathered + 4 * max(embedding, 2 * block), rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_saves(precision: Literal["fp32", "bf16"]) -> None:
    small = replace(MODEL, layers=4, width=128, heads=4, kv_heads=2, head_dim=32, ffn_width=352, vocab_size=512)
    rows, length = 4, 256
    network, saved, kept = build(small, seed=0, activation_checkpointing=False), {}, []
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.append(tensor)  # so that no address is given out twice
        is_weight = storage.data_ptr() in weights or tensor.ndim == 2 and rows * length not in tensor.shape
        saved.update({} if is_weight else {storage.data_ptr(): storage.nbytes()})
        return tensor

    positions = torch.arange(length).expand(rows, length)
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), bf16:
        network(torch.zeros_like(positions), positions, None)
    memory, _ = memory_of(
        small, rows=rows, length=length, precision=precision, states=2, kept=0, frozen=0, shards=1, chunk=1,
        checkpointing=False, compiled=False, workspace=0,
    )  # fmt: skip
    assert memory.activations == pytest.approx(sum(saved.values()), rel=0.15)


def test_checkpointing_changes_only_which_activations_count() -> None:
    off, on = of().memory, of(hardware=replace(GPU, activation_checkpointing=True)).memory
    assert off.total - on.total == pytest.approx(off.activations - off.checkpointed)
    assert on.total < off.total


def test_rows_that_fit_fit_and_one_more_does_not() -> None:
    rows = of().rows_that_fit
    assert rows is not None and rows > 16
    room = 80e9
    assert of(micro_rows=rows).memory.total <= room < of(micro_rows=rows + 1).memory.total


def test_too_large_a_batch_is_named_with_what_to_type() -> None:
    found = of(micro_rows=200)
    assert f"hardware.micro_batch_tokens={found.rows_that_fit * 2048}" in " ".join(warnings(found))  # type: ignore[operator]


def test_epochs_are_planned_tokens_over_what_the_source_holds() -> None:
    web, medqa = of().sources
    assert medqa.tokens == STEPS * BATCH / 4
    assert medqa.epochs == pytest.approx(STEPS * BATCH / 4 / 2e6)
    assert medqa.too_often and not web.too_often
    assert web.epochs is None
    assert "data.sources.medqa.max_epochs" in " ".join(warnings(of()))


def test_a_disk_that_is_too_small_is_said_before_the_run() -> None:
    one = 12 * MODEL.parameters()
    found = of(free_disk=one)
    assert found.disk.checkpoint == one
    assert found.disk.total == one * 5 + 4 * MODEL.parameters()  # last 3, best, the one being written, the export
    assert "checkpoint.keep_last" in " ".join(warnings(found))


def test_an_unknown_device_has_no_hours_but_all_else() -> None:
    found = of(device="foo")
    assert found.hours is None
    assert "hardware.peak_tflops" in " ".join(warnings(found))
    assert "unknown" in plain(found)


def test_the_printed_estimate_names_every_part_and_fits_a_log() -> None:
    text = plain(of(), width=100)
    for part in ("parameters", "FLOPs a token", "activations", "medqa", "40% of 312", "50% of 312", "60% of 312"):
        assert part in text
    for part in ("steps", "optimizer state", "one checkpoint", "epochs", "total at most", "6 N + 12 layers"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
