"""What a run tells a stage: lengths, seeds, names, and what the machine chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lifecycle.model.attention import Kernel


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the run tells every stage beyond its config.

    `total_steps` and `tokens_per_step` resolve the schedule's lengths; `domains` maps a validation domain to its weight
    and the bytes of its text; `peak_flops` is one device's dense peak (None: unknown, no MFU); `initial_weights` are a
    parent's.
    """

    total_steps: int
    tokens_per_step: int
    seed: int
    source_names: Sequence[str]
    domains: Mapping[str, tuple[float, int]]
    validate_every: int | None
    log_every: int
    bf16: bool
    compile: bool
    activation_checkpointing: bool
    attention: Kernel | Literal["auto"]
    peak_flops: float | None
    initial_weights: Mapping[str, Tensor] | None = None
