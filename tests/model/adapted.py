"""Adapters for tests: a spec with any field changed, and a decoder whose adapter has been trained by a die."""

from dataclasses import replace
from typing import Any

import torch

from lifecycle.model import Decoder
from lifecycle.model.adapters import add_adapter
from lifecycle.model.lora import Adapter

LORA = Adapter(
    rank=3, alpha=6, dropout=0.0, targets="all", rslora=False, dora=False, bits=None, lr_ratio=10.0, merge=False
)


def lora(**changes: Any) -> Adapter:
    return replace(LORA, **changes)


@torch.no_grad()
def adapted(model: Decoder, adapter: Adapter = LORA, *, seed: int = 5) -> Decoder:
    """The decoder itself, with an adapter in which no tensor is zero."""
    add_adapter(model, adapter, seed=seed)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name or "magnitude" in name:
            draw = torch.Generator().manual_seed(len(name) + parameter.numel())
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.2, generator=draw))
    model.weights_changed()
    return model
