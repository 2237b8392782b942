"""Mid-training: a parent's model goes on with next-token prediction, on a refined mixture and at a lower rate.

The rate warms up again from a tenth of its peak and decays again, and the parent's own data comes back as a share of
every step: re-warming, re-decaying and replay (arXiv 2403.08763). The optimizer starts afresh, or with the moments that
the parent ended with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lifecycle.batch import StepBatch, TokenBatch
from lifecycle.bounds import Count, FromZero, NotNegative, PartOrNone, Positive
from lifecycle.errors import UserError
from lifecycle.losses.ewc import add_ewc_gradients, diagonal_fisher
from lifecycle.model import Documents, ModelConfig
from lifecycle.optim import AdamW, Muon, Schedule
from lifecycle.stages.bad_steps import NormRatio, Skipping
from lifecycle.stages.base import Stage
from lifecycle.stages.next_token import held_out_loss, next_token_loss
from lifecycle.stages.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What comes back of the data that the parent was trained on; a source named `replay` stands in its place.

    share: of the tokens of every step. ancestors: how many generations back (1: the parent's own mixture), `all`, or
    their weights, the parent first. functions: modules whose functions
    their sources may call.
    """

    share: PartOrNone
    ancestors: Count | Literal["all"] | list[NotNegative]
    functions: list[str] | None

    def __post_init__(self) -> None:
        if isinstance(self.ancestors, list) and not self.ancestors:
            raise UserError("stage.replay.ancestors is []; wanted weights, the parent's first")


@dataclass(frozen=True, kw_only=True)
class Ewc:
    """Elastic weight consolidation (`losses.ewc`): strength of the springs; rows of the parent's data that the Fisher
    information is estimated on."""

    strength: Positive
    rows: Count


class Midtrain(Stage):
    """Next-token prediction on rows of packed documents, from a parent's weights.

    peak_ratio, replay, new_tokens, split_digits: what the run has taken over from the parent, or added to it, by them
    is in `optimizer`, `model` and the data already.
    optimizer_state: `parent` starts with `setup.initial_optimizer`. ewc: springs to the parent's weights, beside replay
    or in its place; None for none.
    """

    starts_from_parent = True
    guard_actions = Stage.guard_actions | {"replay"}

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimizer: AdamW | Muon,
        schedule: Schedule,
        max_skipped: FromZero,
        max_norm_ratio: NormRatio | None,
        z_loss: NotNegative,
        peak_ratio: Positive,
        replay: Replay,
        optimizer_state: Literal["fresh", "parent"],
        ewc: Ewc | None,
        new_tokens: list[str],
        split_digits: bool,
        setup: Setup,
    ) -> None:
        skipping = Skipping(max_skipped=max_skipped, max_norm_ratio=max_norm_ratio)
        super().__init__(model=model, optimizer=optimizer, schedule=schedule, skipping=skipping, setup=setup)
        self.z_loss, self.ewc = z_loss, ewc
        self._springs: tuple[list[Tensor], list[Tensor]] | None = None  # the parent's weights, and how stiff each is

    def on_train_start(self) -> None:
        """Before the first step the springs are made; later they come with the checkpoint."""
        if self._springs is not None:  # they were read before the run had its device
            anchors, fisher = ([t.to(self.device) for t in part] for part in self._springs)
            self._springs = anchors, fisher
        elif self.ewc is not None:
            self._springs = self._make_springs(self.ewc)
        super().on_train_start()

    def _make_springs(self, ewc: Ewc) -> tuple[list[Tensor], list[Tensor]]:
        assert self.model is not None
        parameters = list(self.model.parameters())

        def log_likelihood(row: TokenBatch) -> Tensor:
            assert self.model is not None
            with self.trainer.precision_plugin.forward_context():
                loss, _ = next_token_loss(self.model, *self.on_device(row), z_loss=0.0, compiled=False)
            return -loss

        rows = self.trainer.datamodule.replayed_rows(ewc.rows)  # type: ignore[attr-defined]
        return [p.detach().clone() for p in parameters], diagonal_fisher(parameters, rows, log_likelihood)

    def add_penalties(self) -> dict[str, Tensor]:
        """The springs' pull."""
        if self.ewc is None or self._springs is None or self.model is None:
            return {}
        return {"ewc": add_ewc_gradients(list(self.model.parameters()), *self._springs, strength=self.ewc.strength)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The springs cannot be derived from what the run has become."""
        super().on_save_checkpoint(checkpoint)
        if self._springs is not None:
            checkpoint["stage"]["springs"] = [list(part) for part in self._springs]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        super().on_load_checkpoint(checkpoint)
        springs = checkpoint["stage"].get("springs")
        self._springs = None if springs is None else (springs[0], springs[1])

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """One optimizer step on this rank's share of the global batch."""
        self.take_step(batch, self._loss_sum)

    def _loss_sum(self, batch: TokenBatch, documents: Documents | None) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.model is not None
        return next_token_loss(self.model, batch, documents, z_loss=self.z_loss, compiled=self.setup_facts.compile)

    def validation_step(self, batch: tuple[TokenBatch, Documents | None], batch_idx: int) -> Tensor:
        """(2,) float64: summed negative log-likelihood and number of trained tokens."""
        assert self.model is not None
        return held_out_loss(self.model, *batch)
