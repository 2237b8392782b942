"""Log-probabilities of given tokens: 32 x 128 tokens, 49,152 words, width 576; by chunks, and with whole logits.

    python -m benchmarks.score

ours, plain                 without gradients: what old and reference policies cost
ours_backward, plain_backward  with the gradients of their sum, in hidden states and head
`added_mb` is what the call adds to the resident memory of hidden states and head.
"""

from __future__ import annotations

import os
import resource
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import main, spread

TOKENS, WIDTH, VOCABULARY = 32 * 128, 576, 49152
VARIANTS = {"ours": "ours", "plain": "ours", "ours_backward": "ours", "plain_backward": "ours"}


def plain(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The textbook: whole logits, log-softmax, gather."""
    logp = (hidden @ weight.T).log_softmax(-1)
    return logp.gather(1, ids[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def measure(variant: str, runs: int) -> dict[str, Any]:
    from lifecycle.losses import token_logprobs

    torch.set_num_threads(int(os.environ.get("BENCHMARK_THREADS", os.cpu_count() or 1)))
    generator = torch.Generator().manual_seed(0)
    backward = variant.endswith("backward")
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, requires_grad=backward)
    weight = (torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.02).requires_grad_(backward)
    ids = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    function = token_logprobs if variant.startswith("ours") else plain

    def once() -> float:
        started = time.perf_counter()
        logp, _ = function(hidden, weight, ids)
        if backward:
            torch.autograd.grad(logp.sum(), (hidden, weight))
        return time.perf_counter() - started

    function(hidden[:64], weight, ids[:64])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = [once() for _ in range(runs)]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": spread(times, 3), "added_mb": round(after - before)}


if __name__ == "__main__":
    main("benchmarks.score", VARIANTS, measure, __doc__ or "")
