"""What a run tells a stage: lengths, seeds, names, and what the machine chose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lifecycle.duration import Timeline
from lifecycle.model.attention import Kernel


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the run tells every stage beyond its config.

    `timeline`: the steps of the run, what each is made of, and the rate that goes with it; `domains` maps a validation
    domain to its weight and the bytes of its text; `peak_flops` is one device's dense peak (None: unknown, no MFU);
    `read_weights` reads a parent's, `initial_optimizer` is the state of its optimizer.
    """

    timeline: Timeline
    seed: int
    source_names: Sequence[str]
    domains: Mapping[str, tuple[float, int]]
    validate_every: int | None
    log_every: int | None
    bf16: bool
    compile: bool
    activation_checkpointing: bool
    attention: Kernel | Literal["auto"]
    peak_flops: float | None
    read_weights: Callable[[], Mapping[str, Tensor]] | None = None
    initial_optimizer: Mapping[str, Any] | None = None
