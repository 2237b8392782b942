"""Log-probabilities and scores of answers under a network; and answers behind other prompts, for KTO's baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifecycle.batch import IGNORED, PairBatch, TokenBatch, UnpairedBatch
from lifecycle.losses import log_collisions, token_logprobs
from lifecycle.model import Decoder, DocumentMask

Answers = PairBatch | UnpairedBatch


def answer_logprobs(network: Decoder, batch: Answers, documents: DocumentMask | None) -> Tensor:
    """(N,) fp32: the log-probability of every trained token of the batch, one answer after the other."""
    return _logprobs(network, batch, _hidden(network, batch, documents))


def answer_excess(network: Decoder, batch: Answers, documents: DocumentMask | None) -> tuple[Tensor, Tensor]:
    """The same; and (N,) by how much each exceeds log sum_v p_v^2 of its distribution, a constant."""
    hidden_ND = _hidden(network, batch, documents)
    logp_N = _logprobs(network, batch, hidden_ND)
    collisions_N = log_collisions(hidden_ND.detach(), network.head_weight, softcap=network.config.logit_softcap)
    return logp_N, logp_N.detach() - collisions_N


def _hidden(network: Decoder, batch: Answers, documents: DocumentMask | None) -> Tensor:
    """(N, D): the states that the trained tokens follow on."""
    tokens = batch.tokens
    hidden_BTD = network(tokens.input_ids, tokens.position_ids, documents, counted=tokens.trained)
    return hidden_BTD.flatten(0, 1)[batch.places]


def _logprobs(network: Decoder, batch: Answers, hidden_ND: Tensor) -> Tensor:
    labels_N = batch.tokens.labels.flatten()[batch.places]
    return token_logprobs(hidden_ND, network.head_weight, labels_N, softcap=network.config.logit_softcap)[0]


def pair_scores(network: Decoder, batch: PairBatch, documents: DocumentMask | None) -> tuple[Tensor, Tensor]:
    """(P,) each: what a reward model gives the chosen and the rejected answers, read where they end."""
    tokens = batch.tokens
    hidden_BTD = network(tokens.input_ids, tokens.position_ids, documents, counted=tokens.document_ids > 0)
    chosen_P, rejected_P = (network.scores(hidden_BTD.flatten(0, 1)[ends]) for ends in batch.ends)
    return chosen_P, rejected_P


def mismatched(batch: UnpairedBatch) -> UnpairedBatch:
    """Every prompt of a row with the answer of the next one in that row, the last with that of the first; on the CPU.

    A row keeps its length, and is a matter of its own: how a step is split changes nothing. One with a single sequence
    becomes padding.
    """
    tensors = {name: tensor.numpy().copy() for name, tensor in batch.tokens.tensors().items() if name != "weights"}
    for row in range(len(batch.tokens.input_ids)):
        _turn(*(tensors[name][row] for name in ("input_ids", "labels", "position_ids", "document_ids", "source_ids")))
    tokens = TokenBatch.of({name: torch.from_numpy(array) for name, array in tensors.items()})
    return UnpairedBatch.of(tokens, torch.zeros_like(tokens.input_ids, dtype=torch.float32))


def _turn(
    ids: NDArray[Any], labels: NDArray[Any], positions: NDArray[Any], documents: NDArray[Any], sources: NDArray[Any]
) -> None:
    """One row, in place. A sequence is its prompt, up to the position of its first trained label, and its answer."""
    count = int(documents.max())
    begins = [int(np.argmax(documents == number)) for number in range(1, count + 1)]
    ends = [*begins[1:], int((documents > 0).sum())]
    if count < 2:
        ids[:], labels[:], positions[:], documents[:], sources[:] = 0, IGNORED, 0, 0, -1
        return
    first = [at + int(np.argmax(labels[at:end] != IGNORED)) for at, end in zip(begins, ends, strict=True)]
    prompts = [ids[at : f + 1].copy() for at, f in zip(begins, first, strict=True)]
    answers = [(ids[f + 1 : end].copy(), labels[f:end].copy()) for f, end in zip(first, ends, strict=True)]
    whose = [sources[at] for at in begins]
    at = 0
    for number, prompt in enumerate(prompts):
        more, trained = answers[(number + 1) % count]
        end = at + len(prompt) + len(more)
        ids[at:end] = np.concatenate([prompt, more])
        labels[at:end] = IGNORED
        labels[at + len(prompt) - 1 : end] = trained
        positions[at:end] = np.arange(end - at)
        documents[at:end], sources[at:end] = number + 1, whose[number]
        at = end
