"""Sample continuations of a few prompts: temperature and top-k, every draw seeded by (seed, prompt, position).

The whole prefix is computed again for each token: right for the handful of short samples that a report shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lifecycle.model import Decoder


@torch.no_grad()
def sample(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    stop_id: int,
    banned: Sequence[int] = (),
) -> list[list[int]]:
    """New token ids for each prompt, up to and without `stop_id`; `banned` ids are never drawn."""
    return [
        _continue(model, list(p), max_new_tokens, temperature, top_k, seed + 7919 * i, stop_id, banned)
        for i, p in enumerate(prompts)
    ]


def _continue(
    model: Decoder,
    prompt: list[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    stop_id: int,
    banned: Sequence[int],
) -> list[int]:
    device = model.head_weight.device
    generator = torch.Generator().manual_seed(seed)
    new: list[int] = []
    for _ in range(max_new_tokens):
        ids = torch.tensor([(prompt + new)[-model.config.max_positions :]], device=device)
        positions = torch.arange(ids.shape[1], device=device)[None]
        logits_V = model.logits(model(ids, positions, None)[:, -1])[0].float().cpu()
        logits_V[list(banned)] = -torch.inf
        token = _draw(logits_V, temperature, top_k, generator)
        if token == stop_id:
            break
        new.append(token)
    return new


def _draw(logits_V: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """One token among the `top_k` most probable, at `temperature`."""
    values, ids = logits_V.topk(min(top_k, len(logits_V)))
    return int(ids[torch.multinomial(torch.softmax(values / temperature, 0), 1, generator=generator)])
