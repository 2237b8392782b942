"""What the items of gpu.py measure with: in full on a GPU, as a toy on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lifecycle import config
from lifecycle.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """model: overrides that choose it. row: positions of a row. micro: positions at a time, three sizes. step:
    positions of an optimizer step. steps: those that are timed. batches: rows decoded together; hf_batches: those that
    transformers decodes. prompt, new: tokens. group: prompts, samples of each, new tokens. run: overrides of a run of
    the command line.
    """

    device: torch.device
    model: tuple[str, ...]
    row: int
    micro: tuple[int, int, int]
    step: int
    steps: int
    batches: tuple[int, ...]
    hf_batches: tuple[int, ...]
    prompt: int
    new: int
    group: tuple[int, int, int]
    run: tuple[str, ...]

    def config(self) -> ModelConfig:
        """Of the model, whose vocabulary is the config's."""
        made: ModelConfig = config.build(config.compose(list(self.model)).model)
        return made

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


RUN = (
    "logger=csv",
    "data.tokenizer.vocab_size=512",
    "data.tokenizer.max_bytes=300_000",
    "stage.sequence_length=256",
    "hardware.workers=0",
)
FULL = Sizes(
    device=torch.device("cuda", 0),
    model=("model=medium_large",),
    row=2048,
    micro=(32_768, 65_536, 131_072),
    step=524_288,
    steps=2,
    batches=(1, 64, 256, 1024),
    hf_batches=(1, 64, 256),
    prompt=64,
    new=128,
    group=(16, 16, 512),
    run=(*RUN, "hardware=gpu", "hardware.compile=false", "model=small"),
)
TOY = Sizes(
    device=torch.device("cpu"),
    model=("model=tiny", "model.layers=1", "model.width=32", "model.heads=2", "model.kv_heads=1", "model.head_dim=16")
    + ("model.ffn_width=64", "model.vocab_size=96"),
    row=64,
    micro=(128, 256, 512),
    step=512,
    steps=1,
    batches=(1, 4),
    hf_batches=(1, 4),
    prompt=4,
    new=6,
    group=(2, 2, 6),
    run=(*RUN, "hardware=cpu", "hardware.compile=false", "hardware.precision=fp32", "model=tiny", "model.layers=1"),
)


def timed(sizes: Sizes, function: Callable[[], Any]) -> float:
    """Seconds of one call, the device's work included."""
    sizes.wait()
    started = time.perf_counter()
    function()
    sizes.wait()
    return time.perf_counter() - started
