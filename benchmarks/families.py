"""Training speed of the mixture-of-experts and latent-attention models beside `transformers` of the same config.

    python -m benchmarks.families

The shipped sizes with their depth cut to fit a small machine, vocabulary 8,192, rows of 512, 4 a step, AdamW, clip 1.0.
ours_* is our decoder and loss, hf_* `AutoModelForCausalLM.from_config` of the config that ours exports, both in a bare
loop on the same random rows of one document each. The balance loss and the bias update are on in ours only: theirs has
neither.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import main
from benchmarks.pretrain_step import STEPS, VOCABULARY, random_rows, timed

LAYERS = {"minimind_145m_moe": 3, "deepseek_60m": 4}
ROWS = 4
VARIANTS = {f"{who}_{name}_{how}": "ours" for name in LAYERS for how in ("eager", "compiled") for who in ("ours", "hf")}


def sizes(name: str) -> Any:
    """The shipped config, less deep."""
    from lifecycle import config

    model = config.build(config.compose([f"model={name}"]).model)
    return replace(model, layers=LAYERS[name], vocab_size=VOCABULARY)


def rows(runs: int) -> list[Tensor]:
    return [batch[:ROWS] for batch in random_rows(3 + runs * STEPS)]


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def ours(name: str, runs: int, *, compiled: bool) -> dict[str, Any]:
    from lifecycle.losses import linear_cross_entropy
    from lifecycle.model import build, compile_model
    from lifecycle.optim import clip_gradients

    model = build(sizes(name), seed=0)
    if compiled:
        compile_model(model, unit="model")
    optimizer, batches = adamw(model), rows(runs)
    positions = torch.arange(batches[0].shape[1]).expand_as(batches[0])

    def step(index: int) -> Tensor:
        batch = batches[index]
        labels = batch.roll(-1, dims=1)
        labels[:, -1] = -100
        hidden = model(batch, positions, None)
        loss, _ = linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, labels.flatten(), compiled=compiled)
        (loss / (labels != -100).sum()).backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return timed(step, runs, warm=3, rows=ROWS)


def theirs(name: str, runs: int, *, compiled: bool) -> dict[str, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    from lifecycle.model.huggingface.config_json import to_hf_config

    hf_config = to_hf_config(sizes(name))
    torch.manual_seed(0)
    config = AutoConfig.for_model(**hf_config)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    run = torch.compile(model) if compiled else model
    optimizer, batches = adamw(model), rows(runs)

    def step(index: int) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = run(input_ids=batches[index], labels=batches[index], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return timed(step, runs, warm=3, rows=ROWS)


def measure(variant: str, runs: int) -> dict[str, Any]:
    torch.set_num_threads(os.cpu_count() or 1)
    who, _, rest = variant.partition("_")
    name, _, how = rest.rpartition("_")
    return (ours if who == "ours" else theirs)(name, runs, compiled=how == "compiled")


if __name__ == "__main__":
    main("benchmarks.families", VARIANTS, measure, __doc__ or "")
