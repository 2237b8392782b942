"""The interface between the data of a run and its stage, metrics and forgetting guard."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from lifecycle.batch.steps import Cursor, StepBatch


class DataFeed(Protocol):
    """The data of a run as its stage sees it: `data.module.DataModule` is one, and so is whatever a test makes.

    Steps are counted in those taken: `is_last(8)` asks after the eighth.
    """

    def consumed(self, cursor: Cursor) -> None:
        """The step that `cursor` follows was taken or skipped: a checkpoint from now on goes on after it."""

    def is_last(self, step: int) -> bool:
        """Whether the run is done after `step` steps, by its plan or because the data has come to its end."""

    def fails_after(self, step: int) -> bool:
        """Whether no batch follows `step` steps because reading failed or a source was used up."""

    def row_length_at(self, step: int) -> int:
        """Positions of each row of the step that follows `step` steps."""

    def usage(self) -> Tensor:
        """(sources, 2) float64: epochs begun and rows left out, this rank's part: ranks add up to the whole."""

    def too_long(self, cursor: Cursor) -> Tensor:
        """(sources, 2) float64: rows that were left out for their length up to `cursor`, and those that were not left
        out for anything else, this rank's part."""

    def val_dataloader(self) -> Mapping[str, Sequence[Any]]:
        """This rank's held-out micro-batches by domain, of the view's kind, the same number on every rank."""

    def whole_run(self) -> Generator[StepBatch[Any]]:
        """This rank's batches from the first step to the last as it is planned, read beside the training, whose place
        in the data stays. Every rank must call."""

    def replayed_rows(self, count: int) -> Sequence[Any]:
        """At most `count` rows of the replayed sources' training data, one a batch, the same on every rank."""

    def replay_share(self) -> float:
        """The share of the replayed sources in the tokens of the next step."""

    def set_replay_share(self, share: float) -> int:
        """Give the replayed sources another share; the step from which it binds. Every rank must call."""
