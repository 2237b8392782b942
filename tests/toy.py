"""The smallest model of the tests: `toy()`, and with any field changed `toy(layers=3)`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lifecycle.model import ModelConfig

TOY = ModelConfig(
    family="llama",
    layers=2,
    width=24,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn_width=40,
    vocab_size=96,
    max_positions=64,
    rope_theta=1e4,
    norm_eps=1e-5,
    qk_norm=False,
    tied_head=True,
    init_std=0.2,
)


def toy(**changes: Any) -> ModelConfig:
    """A decoder of 12,792 parameters, with `changes` of its fields."""
    return replace(TOY, **changes)
