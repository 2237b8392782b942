"""Weights that are drawn: by a CPU generator, so that they depend on the seed alone; and a score in place of a head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lifecycle.model.config import ModelConfig
from lifecycle.system.seeds import derive

HEAD, SCORE = "head.weight", "score.weight"
"""Our names of the weights of a head that is not tied, and of a score."""


def normal(shape: torch.Size, std: float, *, seed: int) -> Tensor:
    """fp32 on the CPU, also where another device is the default."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)


def score_std(config: ModelConfig) -> float:
    """Of a fresh score, as OpenRLHF's, 1 / (width + 1): scores begin near 0 whatever the width."""
    return 1 / (config.width + 1)


def fresh_score(config: ModelConfig, *, seed: int) -> Tensor:
    """(1, D): the weight of the score that a model of `config` begins with, whatever its other weights are."""
    return normal(torch.Size((1, config.width)), score_std(config), seed=derive(seed, "weights", SCORE))


def ending_in(weights: Mapping[str, Tensor], score: Tensor) -> dict[str, Tensor]:
    """Weights by our names, with this score in place of the head or of another score."""
    return {**{name: weight for name, weight in weights.items() if name != HEAD}, SCORE: score}
