"""The root of a config: the types of the keys that every run has. Their meaning stands in conf/config.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lifecycle.bounds import Count, Every, FromZero, Part, Positive
from lifecycle.errors import UserError

Action = Literal["replay", "rate", "restore"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When a run is saved and what is kept."""

    every_steps: Every
    keep_last: Count
    milestones: list[Count]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """When a run is measured on held-out text, on how many tokens a domain, and how many held-out prompts a domain it
    answers then, in how many tokens at most. samples: drawn for each held-out prompt beside the greedy answer, of a
    stage that learns from samples."""

    every_steps: Every
    tokens: Count
    answers: FromZero | None
    answer_tokens: Count
    samples: FromZero


@dataclass(frozen=True, kw_only=True)
class Logging:
    """How often metrics are read from the device."""

    every_steps: Every


@dataclass(frozen=True, kw_only=True)
class Export:
    """The form of the exported model."""

    dtype: Literal["fp32", "bf16", "fp16"]
    shard_gb: Positive


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Thresholds of forgetting and the actions of the guard. A threshold is a share: 0.1 is a perplexity 10 % above the
    one before the first step."""

    watch: Positive
    act: Positive
    stop: Positive
    actions: list[Action]
    patience: Count
    replay_step: Part
    replay_max: Part

    def __post_init__(self) -> None:
        if not self.watch < self.act < self.stop:
            raise UserError(
                f"guard.watch, act and stop are {self.watch:g}, {self.act:g} and {self.stop:g}; they must ascend"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The root of every config; each key is explained in conf/config.yaml."""

    run: str
    seed: int
    init_from: str | None
    resume: str
    dry_run: bool
    deterministic: bool
    adapter: dict[str, Any] | None
    checkpoint: Checkpoint
    validation: Validation
    logging: Logging
    guard: Guard | None
    export: Export
    model: dict[str, Any]
    data: dict[str, Any]
    stage: dict[str, Any]
    hardware: dict[str, Any]
    logger: dict[str, Any]
    callbacks: dict[str, Any]
