"""A scoring pass over completions that somebody else drew: every number that a `Rollout` holds, from our own model.

Shapes: B completions of a forward pass, T positions or tokens of a completion, C tokens of one chunk, D width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lifecycle.model import Decoder
from lifecycle.rollout.sampling import TIE, Sampling, device_ids, log_probabilities, threshold

POSITIONS = 16_384
"""Of one forward pass, padding with them."""

LOGITS = 1 << 26
"""Logits that exist at a time (256 MB in fp32, of which a few copies are made)."""


class Scored(NamedTuple):
    """Of each token, (T,) fp32 on the CPU; see `Rollout` for what they are."""

    logprobs: Tensor
    full_logprobs: Tensor
    entropy: Tensor
    threshold: Tensor


@torch.no_grad()
def score(
    model: Decoder, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], sampling: Sampling
) -> list[Scored]:
    """Each completion after its prompt, at least one token each; forward passes over those of like length together.

    The drawn token is in its kept set, also where rounding elsewhere let it in: the threshold then goes down to it.
    """
    whole = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    order = sorted(range(len(whole)), key=lambda i: len(whole[i]), reverse=True)
    found: dict[int, Scored] = {}
    while order:
        size = max(1, POSITIONS // len(whole[order[0]]))
        batch, order = order[:size], order[size:]
        hidden_BTD = _hidden(model, [whole[i] for i in batch])
        for i, hidden_TD in zip(batch, hidden_BTD, strict=True):
            found[i] = _score(model, hidden_TD, whole[i], len(prompts[i]), sampling)
    return [found[i] for i in range(len(whole))]


def _hidden(model: Decoder, whole: Sequence[Sequence[int]]) -> Tensor:
    """(B, T, D) of all tokens but the last; the padding stands behind, where no other position sees it."""
    device, longest = model.embedding.weight.device, len(whole[0]) - 1
    ids_BT = torch.tensor([[*ids[:-1], *[0] * (longest + 1 - len(ids))] for ids in whole], device=device)
    hidden_BTD: Tensor = model(ids_BT, torch.arange(longest, device=device).expand(len(whole), -1))
    return hidden_BTD


def _score(model: Decoder, hidden_TD: Tensor, ids: Sequence[int], prompt: int, sampling: Sampling) -> Scored:
    """The tokens of `ids` behind the first `prompt` ones, a chunk of logits at a time."""
    vocab, device = model.config.vocab, hidden_TD.device
    ids_T, banned = torch.tensor(ids, device=device), device_ids(sampling.banned_ids, device)
    first_V = _first(ids_T, vocab) if sampling.repetition_penalty != 1 else None
    parts = []
    for places_C in torch.arange(prompt, len(ids), device=device).split(max(1, LOGITS // vocab)):
        logits_CV = model.logits(hidden_TD[places_C - 1])
        seen_CV = None if first_V is None else first_V < places_C[:, None]
        logp_CV = log_probabilities(logits_CV, sampling, seen_RV=seen_CV, banned_ids=banned)
        parts.append(_of_tokens(logp_CV, ids_T[places_C], sampling))
    return Scored(*(torch.cat(values).float().cpu() for values in zip(*parts, strict=True)))


def _of_tokens(logp_CV: Tensor, ids_C: Tensor, sampling: Sampling) -> Scored:
    full_C = logp_CV.gather(1, ids_C[:, None])[:, 0]
    p_CV = logp_CV.exp()
    entropy_C = -torch.linalg.vecdot(p_CV, logp_CV)
    if not sampling.truncates:
        return Scored(full_C, full_C, entropy_C, torch.full_like(full_C, -torch.inf))
    edge_C = torch.minimum(threshold(logp_CV, sampling), full_C - TIE)
    mass_C = p_CV.masked_fill(logp_CV < edge_C[:, None], 0).sum(-1)
    return Scored(full_C - mass_C.log(), full_C, entropy_C, edge_C)


def _first(ids_T: Tensor, vocab: int) -> Tensor:
    """(V,) the place where each token stands first; behind the end for those that never do."""
    first_V = torch.full((vocab,), len(ids_T), device=ids_T.device)
    return first_V.scatter_reduce(0, ids_T, torch.arange(len(ids_T), device=ids_T.device), reduce="amin")
