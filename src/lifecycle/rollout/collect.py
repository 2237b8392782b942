"""What the decode steps leave behind, gathered on the device, and the `Rollout` that comes of it.

Shapes: N sequences, T most new tokens, B rows of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lifecycle.batch import Rollout, StopReason
from lifecycle.rollout.sampling import Sampling
from lifecycle.rollout.stopping import Decoding

FACTS = 4
"""Numbers kept of each token: log-probability, the untruncated one, entropy, threshold."""


class Collected:
    """Tokens and their facts by sequence; one line more takes what rows at rest write."""

    def __init__(self, sequences: int, tokens: int, *, device: torch.device) -> None:
        self._ids = torch.zeros(sequences + 1, tokens, dtype=torch.long, device=device)
        self._facts = torch.zeros(sequences + 1, tokens, FACTS, device=device)
        self._lengths = [0] * sequences
        self._reasons: list[StopReason] = ["length"] * sequences

    def add(self, places_B: Tensor, numbers_B: Tensor, ids_B: Tensor, facts_BF: Tensor) -> None:
        """Row b drew token `numbers_B[b]` (from 0) of sequence `places_B[b]`."""
        self._ids[places_B, numbers_B] = ids_B
        self._facts[places_B, numbers_B] = facts_BF

    def end(self, sequence: int, length: int, reason: StopReason) -> None:
        """The sequence is whole."""
        self._lengths[sequence], self._reasons[sequence] = length, reason

    def rollout(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        prompt_ids: Sequence[int],
        seeds: Sequence[int],
        tokenizer: Decoding | None,
        weights_version: int,
    ) -> Rollout:
        """All sequences, `samples` of a prompt together; `prompts` and `prompt_ids` of each sequence.

        Errors: `FloatingPointError` for logits that are not finite.
        """
        longest = max(self._lengths, default=0)
        # clones: tensors made in inference mode could not enter a loss
        ids, facts = (x[:-1, :longest].cpu().clone() for x in (self._ids, self._facts))
        lengths = torch.tensor(self._lengths, dtype=torch.long, device="cpu")
        mask = torch.arange(longest, device="cpu") < lengths[:, None]
        logprobs, full, entropy, edge = (torch.where(mask, x, 0) for x in facts.unbind(-1))
        broken = torch.nonzero(~torch.isfinite(entropy) | ~torch.isfinite(full))
        if len(broken):
            row, token = broken[0].tolist()
            raise FloatingPointError(
                f"the logits of prompt {prompt_ids[row]} are not finite at token {token} of its completion: the "
                "weights are damaged or training has diverged"
            )
        completions = [line[:length] for line, length in zip(ids.tolist(), self._lengths, strict=True)]
        return Rollout(
            prompt_id=torch.tensor(prompt_ids, dtype=torch.long, device="cpu"),
            sample=torch.arange(len(prompts), device="cpu") % samples,
            seed=torch.tensor(seeds, dtype=torch.long, device="cpu"),
            prompts=[list(prompt) for prompt in prompts],
            token_ids=torch.where(mask, ids, 0),
            mask=mask,
            text=["" if tokenizer is None else tokenizer.decode(completion) for completion in completions],
            logprobs=logprobs,
            full_logprobs=full,
            entropy=entropy,
            threshold=edge,
            stop_reason=list(self._reasons),
            weights_version=weights_version,
        )


def best(rollout: Rollout, sampling: Sampling) -> Rollout:
    """The `sampling.samples` best of every `sampling.drawn` completions, by mean or sum of their untruncated
    log-probabilities, the best first; of equals the one drawn first."""
    score_N = rollout.full_logprobs.double().sum(1)
    if sampling.best_by == "mean":
        score_N = score_N / rollout.lengths.clamp(min=1)
    chosen = []
    for start in range(0, len(rollout), sampling.drawn):
        part = score_N[start : start + sampling.drawn]
        chosen += [start + int(i) for i in part.sort(descending=True, stable=True).indices[: sampling.samples]]
    return rollout.rows(chosen)
