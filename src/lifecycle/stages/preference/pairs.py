"""The losses of pairs: what policy and reference say of both answers, compared as an objective asks."""

from __future__ import annotations

import torch
from torch import Tensor

from lifecycle.batch import PairBatch
from lifecycle.losses.preference import PairLogprobs, shared_length, wpo_weights
from lifecycle.model import Decoder, DocumentMask
from lifecycle.stages.preference import told
from lifecycle.stages.preference.answers import answer_excess, answer_logprobs
from lifecycle.stages.preference.objective import Objective, StepFacts
from lifecycle.stages.preference.reference import Reference

Judged = tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]
"""Losses of items, and what is told of each."""


def judged_pairs(
    network: Decoder,
    batch: PairBatch,
    documents: DocumentMask | None,
    *,
    objective: Objective,
    reference: Reference | None,
    facts: StepFacts,
    tail: float,
) -> Judged:
    """The loss of every pair, and what is told of it. facts: of the whole step; tail: weight of the tokens behind the
    length of a pair's shorter answer."""
    excess_N: Tensor | None = None
    if objective.weighs:
        logp_N, excess_N = answer_excess(network, batch, documents)
    else:
        logp_N = answer_logprobs(network, batch, documents)
    reference_N = None if reference is None else reference.logprobs(batch, documents)
    whole = pair_logprobs(batch, logp_N, reference_N, tail=1.0)  # what is told is of whole answers
    apart_P = None if reference_N is None else torch.add(*batch.sums((logp_N - reference_N).square()))
    measured = told.of_pairs(whole, beta=objective.beta, by_mean=objective.by_mean, apart_P=apart_P)
    losses = objective.of_pairs(pair_logprobs(batch, logp_N, reference_N, tail=tail), facts)
    if excess_N is not None:
        losses = losses * wpo_weights(*batch.sums(excess_N), whole)
    return losses, measured


def pair_logprobs(batch: PairBatch, logp_N: Tensor, reference_N: Tensor | None, *, tail: float) -> PairLogprobs:
    """Of both sides, the tail of the longer one weighed."""
    tokens_Q = batch.at.sums(torch.ones_like(logp_N))
    policy, reference = (
        (None, None) if values_N is None else batch.sums(_weighed(values_N, batch, tokens_Q, tail))
        for values_N in (logp_N, reference_N)
    )
    assert policy[0] is not None and policy[1] is not None
    return PairLogprobs(
        chosen=policy[0],
        rejected=policy[1],
        reference_chosen=reference[0],
        reference_rejected=reference[1],
        chosen_tokens=tokens_Q[0::2],
        rejected_tokens=tokens_Q[1::2],
    )


def chosen_tokens(batch: PairBatch) -> Tensor:
    """(2,) float64: the tokens of the chosen answers, and the pairs, which some losses divide by."""
    tokens = (batch.at.sequence % 2 == 0).sum().double()
    return torch.stack([tokens, torch.full_like(tokens, len(batch))])


def _weighed(values_N: Tensor, batch: PairBatch, tokens_Q: Tensor, tail: float) -> Tensor:
    if tail == 1.0:
        return values_N
    return shared_length(values_N, batch.at.sequence, tokens_Q.long(), tail=tail)
