"""A scoring pass over given completions: log-probabilities, entropies and kept sets of their tokens under our model.

    scored = score(model, prompts, completions, sampling)     # each under the kept sets of this model
    scored = score_rollout(model, rollout, sampling)          # ... of the sampler: for a reference, an updated policy

Shapes: N completions, B of a forward pass, T positions or tokens of a completion, C tokens of one chunk, D width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lifecycle.batch import Kept, Rollout
from lifecycle.model import Decoder
from lifecycle.model.scoring import hidden_states
from lifecycle.rollout.sampling.draw import TIE, log_probabilities, threshold
from lifecycle.rollout.sampling.on_device import DeviceSampling
from lifecycle.rollout.sampling.parameters import Sampling

LOGITS = 1 << 26
"""Logits that exist at a time (256 MB in fp32, of which a few copies are made)."""


class Scored(NamedTuple):
    """Of each token, (T,) or (N, T) fp32 on the CPU; see `Rollout` for what they are."""

    logprobs: Tensor
    full_logprobs: Tensor
    entropy: Tensor
    kept: Kept


@torch.no_grad()
def score(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    kept: Sequence[Kept] | None = None,
) -> list[Scored]:
    """Each completion after its prompt, at least one token each; forward passes over those of like length together.

    kept: the sets of each completion's tokens; None makes those of this model, in which the drawn token is, also where
    rounding elsewhere let it in.
    """
    whole = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    settings = DeviceSampling(sampling, vocab=model.config.vocab, device=model.embedding.weight.device)
    found: dict[int, Scored] = {}
    for numbers, hidden_BTD in hidden_states(model, whole):
        for i, hidden_TD in zip(numbers, hidden_BTD, strict=True):
            own = None if kept is None else kept[i]
            found[i] = _score(model, hidden_TD, whole[i], len(prompts[i]), settings, own)
    return [found[i] for i in range(len(whole))]


def score_rollout(model: Decoder, rollout: Rollout, sampling: Sampling) -> Scored:
    """The sampled tokens of a rollout under the sets that they were drawn from, whichever weights drew them; 0 for
    other tokens."""
    sequences, exists = range(len(rollout)), rollout.exists
    kept = [rollout.rows([n]).kept.first(int(rollout.length[n])) for n in sequences]
    scored = score(model, rollout.prompts, [rollout.completion(n) for n in sequences], sampling, kept=kept)
    facts_3NT = torch.zeros(3, *exists.shape, dtype=torch.float32, device="cpu")
    for n, one in enumerate(scored):
        facts_3NT[:, n, : len(one.logprobs)] = torch.stack(one[:3])
    logprobs, full, entropy = facts_3NT.masked_fill(~rollout.sampled, 0)
    return Scored(logprobs, full, entropy, rollout.kept)


def _score(
    model: Decoder, hidden_TD: Tensor, ids: Sequence[int], prompt: int, settings: DeviceSampling, kept: Kept | None
) -> Scored:
    """The tokens of `ids` behind the first `prompt` ones, a chunk of logits at a time."""
    vocab, device = model.config.vocab, hidden_TD.device
    ids_T = torch.tensor(ids, device=device)
    first_V = _first(ids_T, vocab) if settings.form.penalised else None
    given = None if kept is None else kept.to(device)
    parts, sets, size = [], [], max(1, LOGITS // vocab)
    for start in range(0, len(ids) - prompt, size):
        places_C = torch.arange(prompt + start, min(prompt + start + size, len(ids)), device=device)
        seen_CV = None if first_V is None else first_V < places_C[:, None]
        logp_CV = log_probabilities(model.logits(hidden_TD[places_C - 1]), settings, seen_RV=seen_CV)
        full_C = logp_CV.gather(1, ids_T[places_C][:, None])[:, 0]
        if given is not None:
            kept_CV = given.mask(slice(start, start + size), vocab)
        elif settings.form.truncates:
            kept_CV = logp_CV >= torch.minimum(threshold(logp_CV, settings), full_C - TIE)[:, None]
            sets.append(Kept.of_mask(kept_CV.cpu()))
        else:
            kept_CV = None
        parts.append(_of_tokens(logp_CV, full_C, kept_CV))
    logprobs, full, entropy = (torch.cat(values).float().cpu() for values in zip(*parts, strict=True))
    made = Kept.joined(sets) if sets else Kept.whole(len(ids) - prompt)
    return Scored(logprobs, full, entropy, made if kept is None else kept)


def _of_tokens(logp_CV: Tensor, full_C: Tensor, kept_CV: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(logprobs, full_logprobs, entropy) of one chunk."""
    p_CV = logp_CV.exp()
    entropy_C = -torch.linalg.vecdot(p_CV, logp_CV)
    if kept_CV is None:
        return full_C, full_C, entropy_C
    return full_C - (p_CV * kept_CV).sum(-1).log(), full_C, entropy_C


def _first(ids_T: Tensor, vocab: int) -> Tensor:
    """(V,) the place where each token stands first; behind the end for those that never do."""
    first_V = torch.full((vocab,), len(ids_T), device=ids_T.device)
    return first_V.scatter_reduce(0, ids_T, torch.arange(len(ids_T), device=ids_T.device), reduce="amin")
