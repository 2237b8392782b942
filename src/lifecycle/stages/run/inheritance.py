"""Keys of `stage` for what a stage takes over from other models: from its parent peak rate, optimizer state, vocabulary
and replayed data, and beside it a teacher.

A stage lists those that it has (`Stage.takes_over`). The run applies them before it builds the stage: to the settings
of the optimizer, to the model and to the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lifecycle.bounds import Count, NotNegative, PartOrNone, Positive
from lifecycle.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PeakRate:
    """peak_ratio: the peak rate as a share of the parent's, where stage.optimizer.lr is null."""

    peak_ratio: Positive


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """optimizer_state: `parent` goes on with the moments that the parent ended with."""

    optimizer_state: Literal["fresh", "parent"]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """new_tokens: names that become one token each in any text. split_digits: whether every digit becomes a token."""

    new_tokens: list[str]
    split_digits: bool


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Replay of the data that the parent was trained on; a source named `replay` in the mixture replaces it.

    share: of the tokens of every step. ancestors: how many generations back (1: the parent's own mixture), `all`, or
    their weights, the parent first. functions: modules whose functions their sources may call.
    """

    share: PartOrNone
    ancestors: Count | Literal["all"] | list[NotNegative]
    functions: list[str] | None

    def __post_init__(self) -> None:
        if isinstance(self.ancestors, list) and not self.ancestors:
            raise UserError("stage.replay.ancestors is []; wanted weights, the parent's first")


@dataclass(frozen=True, kw_only=True)
class ReplayedData:
    """replay: how much of every step is drawn from the parent's own mixture, and of how many generations."""

    replay: Replay


@dataclass(frozen=True, kw_only=True)
class TeacherName:
    """teacher: the model to learn from, named as `init_from` names a parent."""

    teacher: str | None
