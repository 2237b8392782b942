"""Next-token loss of packed rows in training and on held-out text, for every stage that trains on text or chat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lifecycle.batch import TokenBatch
from lifecycle.losses import linear_cross_entropy, token_losses
from lifecycle.model import Decoder, DocumentMask

NEXT_TOKEN = frozenset({"text", "chat"})
"""Views that this loss is for: every label is trained by itself, or not at all."""


@dataclass(frozen=True, kw_only=True)
class TrainedTokens:
    """Keys of `stage` that the data of the run reads. train_on: the tokens of a conversation that are trained: those
    that the assistant writes, or all."""

    train_on: Literal["assistant", "all"]


def next_token_loss(
    model: Decoder,
    batch: TokenBatch,
    documents: DocumentMask | None,
    *,
    z_loss: float = 0.0,
    dft: bool = False,
    compiled: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed loss (scalar, fp32) of the trained tokens, each times its weight: cross-entropy + `z_loss` logsumexp^2;
    with `dft` the dynamic loss in the place of the first term.

    The metrics hold the sum of the second term, if z_loss is not 0, and with `dft` the cross-entropy. compiled: fuse
    the work on the logits.
    """
    hidden_BTD = model(batch.input_ids, batch.position_ids, documents, counted=batch.trained)
    loss, metrics = linear_cross_entropy(
        hidden_BTD.flatten(0, 1),
        model.head_weight,
        batch.labels.flatten(),
        weights_N=None if batch.weights is None else batch.weights.flatten(),
        z_loss=z_loss,
        dft=dft,
        softcap=model.config.logit_softcap,
        compiled=compiled,
    )
    told = {"z_loss": bool(z_loss), "nll": dft}
    return loss, {name: metrics[name] for name, wanted in told.items() if wanted}


def held_out_loss(model: Decoder, batch: TokenBatch, documents: DocumentMask | None) -> Tensor:
    """(2,) float64: summed negative log-likelihood and number of trained tokens, each by its weight."""
    hidden_BTD = model(batch.input_ids, batch.position_ids, documents)
    cap = model.config.logit_softcap
    losses = token_losses(hidden_BTD.flatten(0, 1), model.head_weight, batch.labels.flatten(), softcap=cap)
    if batch.weights is None:
        return torch.stack([losses.double().sum(), batch.trained.sum().double()])
    weights = batch.weights.flatten().double() * batch.trained.flatten()
    return torch.stack([(losses.double() * weights).sum(), weights.sum()])
