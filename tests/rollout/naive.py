"""A sampler to compare with: one sequence, the whole prefix again for every token, no cache, no batch."""

import torch

from lifecycle.batch import Kept
from lifecycle.model import Decoder
from lifecycle.rollout.sampling.draw import draw, log_probabilities
from lifecycle.rollout.sampling.on_device import DeviceSampling
from lifecycle.rollout.sampling.parameters import Sampling, sequence_seed, uniforms


@torch.no_grad()
def complete(
    model: Decoder, prompt: list[int], sampling: Sampling, *, seed: int, step: int, prompt_id: int, sample: int
) -> list[int]:
    """New tokens after `prompt`, by ids and length alone."""
    own = torch.tensor([sequence_seed(seed, step, prompt_id, sample)])
    settings = DeviceSampling(sampling, vocab=model.config.vocab, device=torch.device("cpu"))
    new: list[int] = []
    while len(new) < sampling.max_new_tokens and len(prompt) + len(new) < model.config.max_positions:
        seen = torch.zeros(1, model.config.vocab, dtype=torch.bool)
        seen[0, prompt + new] = True
        logits = last_logits(model, prompt + new)
        drawn = draw(logits, uniforms(own, torch.tensor([len(new)])), settings, seen_RV=seen)
        new.append(int(drawn.ids))
        if new[-1] in sampling.stop_ids:
            break
    return new


@torch.no_grad()
def score(
    model: Decoder, prompt: list[int], completion: list[int], kept: Kept, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A fresh scoring pass over a whole sequence: log-probabilities within the kept sets, untruncated, entropies."""
    ids = torch.tensor([prompt + completion[:-1]])
    hidden = model(ids, torch.arange(ids.shape[1])[None])[:, len(prompt) - 1 :]
    logits = model.logits(hidden)[0]
    seen = torch.zeros(len(completion), model.config.vocab, dtype=torch.bool)
    for number in range(len(completion)):
        seen[number, prompt + completion[:number]] = True
    settings = DeviceSampling(sampling, vocab=model.config.vocab, device=torch.device("cpu"))
    logp = log_probabilities(logits, settings, seen_RV=seen)
    full = logp.gather(1, torch.tensor(completion)[:, None])[:, 0]
    mass = torch.where(kept.mask(slice(0, len(completion)), model.config.vocab), logp.exp(), 0).sum(-1)
    return full - mass.log(), full, -(logp.exp() * logp).sum(-1)


def last_logits(model: Decoder, ids: list[int]) -> torch.Tensor:
    """(1, V) after the last of `ids`."""
    hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None])
    return model.logits(hidden[:, -1])
