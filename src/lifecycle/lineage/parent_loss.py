"""Difficulty of documents for a curriculum by `loss`: the mean loss a token, in nats, under the run's parent."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifecycle.batch import IGNORED
from lifecycle.errors import UserError
from lifecycle.hardware import Hardware
from lifecycle.lineage.load_model import load_model
from lifecycle.lineage.parent import Parent
from lifecycle.losses.cross_entropy import token_losses
from lifecycle.model import Decoder
from lifecycle.model.scoring import hidden_states


class ParentLoss:
    """Nats a token of whole documents under `parent`, on the run's device; its weights are read at the first call.

    Of a document longer than the model's positions only the beginning is scored.
    """

    def __init__(self, parent: Parent, hardware: Hardware) -> None:
        self._parent, self._hardware = parent, hardware

    @cached_property
    def key(self) -> str:
        """Identifies the parent's weights, for caches."""
        lineage = self._parent.lineage()["parent"]
        return f"{lineage['sha256']}@{lineage.get('step', 'end')}"

    @cached_property
    def _model(self) -> Decoder:
        return load_model(self._parent, self._hardware)

    def __call__(self, documents: list[NDArray[np.int32]]) -> list[float]:
        """One number a document, NaN for one of a single token. Raises UserError for tokens that the parent lacks."""
        known = self._parent.model.vocab
        if max((int(ids.max()) for ids in documents if len(ids)), default=0) >= known:
            raise UserError(
                f"data.curriculum.by is 'loss', but the tokenizer has tokens that {self._parent.name} has not learned "
                f"(its vocabulary ends at {known}): choose another score"
            )
        most, out = self._parent.model.max_positions, np.full(len(documents), np.nan)
        cut = [ids[: most + 1] for ids in documents]
        for numbers, hidden_BTD in hidden_states(self._model, cut):
            out[numbers] = self._losses([cut[number] for number in numbers], hidden_BTD)
        return [float(loss) for loss in out]

    @torch.no_grad()
    def _losses(self, documents: list[NDArray[np.int32]], hidden_BTD: Tensor) -> NDArray[np.float64]:
        labels = np.full(hidden_BTD.shape[:2], IGNORED, np.int64)
        for row, document in enumerate(documents):
            labels[row, : len(document) - 1] = document[1:]
        labels_N = torch.from_numpy(labels).to(hidden_BTD.device).flatten()
        softcap = self._model.config.logit_softcap
        losses_N = token_losses(hidden_BTD.flatten(0, 1), self._model.head_weight, labels_N, softcap=softcap)
        sums = losses_N.view(hidden_BTD.shape[:2]).sum(1, dtype=torch.float64).cpu().numpy()
        counts = (labels != IGNORED).sum(1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
