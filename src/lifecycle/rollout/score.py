"""A scoring pass over completions that somebody else drew: every number that a `Rollout` holds, from our own model.

Shapes: T tokens of one completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lifecycle.model import Decoder
from lifecycle.rollout.sampling import TIE, Sampling, device_ids, log_probabilities, threshold


class Scored(NamedTuple):
    """Of each token, (T,) fp32 on the CPU; see `Rollout` for what they are."""

    logprobs: Tensor
    full_logprobs: Tensor
    entropy: Tensor
    threshold: Tensor


@torch.no_grad()
def score(model: Decoder, prompt: Sequence[int], completion: Sequence[int], sampling: Sampling) -> Scored:
    """One forward pass over prompt and completion; at least one token each.

    The drawn token is in its kept set, also where rounding elsewhere let it in: the threshold then goes down to it.
    Memory: the logits of the completion, T x V.
    """
    device = model.embedding.weight.device
    ids = torch.tensor([[*prompt, *completion]], device=device)
    positions = torch.arange(ids.shape[1] - 1, device=device)[None]
    logits_TV = model.logits(model(ids[:, :-1], positions)[0, len(prompt) - 1 :])
    seen = _seen(ids[0], len(prompt), logits_TV.shape[1]) if sampling.repetition_penalty != 1 else None
    banned = device_ids(sampling.banned_ids, device)
    logp_TV = log_probabilities(logits_TV, sampling, seen_RV=seen, banned_ids=banned)
    full_T = logp_TV.gather(1, ids[0, len(prompt) :, None])[:, 0]
    p_TV = logp_TV.exp()
    entropy_T = -torch.linalg.vecdot(p_TV, logp_TV)
    if not sampling.truncates:
        return Scored(*(x.float().cpu() for x in (full_T, full_T, entropy_T, torch.full_like(full_T, -torch.inf))))
    edge_T = torch.minimum(threshold(logp_TV, sampling), full_T - TIE)
    mass_T = p_TV.masked_fill(logp_TV < edge_T[:, None], 0).sum(-1)
    return Scored(*(x.float().cpu() for x in (full_T - mass_T.log(), full_T, entropy_T, edge_T)))


def _seen(ids: Tensor, prompt: int, vocab: int) -> Tensor:
    """(T, V) bool: which tokens stand before each token of the completion."""
    first_V = torch.full((vocab,), len(ids), device=ids.device)
    places = torch.arange(len(ids), device=ids.device)
    first_V = first_V.scatter_reduce(0, ids, places, reduce="amin")
    return first_V < places[prompt:, None]
