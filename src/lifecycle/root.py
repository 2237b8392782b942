"""The root of a config: the types of the keys that every run has. Their meaning stands in conf/config.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lifecycle.errors import UserError

Action = Literal["replay", "rate", "restore"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When a run is saved and what is kept."""

    every_steps: int
    keep_last: int
    milestones: list[int]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """When a run is measured on held-out text, and on how many tokens a domain."""

    every_steps: int | None
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Logging:
    """How often metrics are read from the device."""

    every_steps: int


@dataclass(frozen=True, kw_only=True)
class Export:
    """The form of the model that a run hands over."""

    dtype: Literal["fp32", "bf16", "fp16"]
    shard_gb: float


@dataclass(frozen=True, kw_only=True)
class Guard:
    """When what the parent knew counts as forgotten, and what is done then. Thresholds are shares: 0.1 is a perplexity
    10 % above the one before the first step."""

    watch: float
    act: float
    stop: float
    actions: list[Action]
    patience: int
    replay_step: float
    replay_max: float

    def __post_init__(self) -> None:
        if not 0 < self.watch < self.act < self.stop:
            raise UserError(
                f"guard.watch, act and stop are {self.watch:g}, {self.act:g} and {self.stop:g}; they must ascend from "
                "above 0"
            )
        if self.patience < 1:
            raise UserError(f"guard.patience is {self.patience}; it counts measurements, 1 or more")
        if not (0 < self.replay_step < 1 and 0 < self.replay_max < 1):
            raise UserError("guard.replay_step and replay_max are shares of the tokens, between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The root of every config; each key is explained in conf/config.yaml."""

    run: str
    seed: int
    init_from: str | None
    resume: str
    dry_run: bool
    deterministic: bool
    adapter: str | None
    checkpoint: Checkpoint
    validation: Validation
    logging: Logging
    guard: Guard
    export: Export
    model: dict[str, Any]
    data: dict[str, Any]
    stage: dict[str, Any]
    hardware: dict[str, Any]
    logger: dict[str, Any]
    callbacks: dict[str, Any]
