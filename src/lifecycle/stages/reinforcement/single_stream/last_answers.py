"""The last answer to a prompt: its tokens, and how probable they were when they were drawn.

How far the policy has moved since is measured on it. The log-probabilities are those of the whole distribution at the
temperature of the draw, so that the sets that the tokens were drawn from need not be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lifecycle.batch import Kept, Rollout
from lifecycle.stages.step.collectives import gather_values


class LastAnswer(NamedTuple):
    """prompt, completion: int64 ids. logp: fp32, of each token of the completion; NaN: the policy did not draw it. All
    empty: there is none."""

    prompt: Tensor
    completion: Tensor
    logp: Tensor


NONE = LastAnswer(*(torch.zeros(0, dtype=kind, device="cpu") for kind in (torch.long, torch.long, torch.float32)))


def of_rollout(rollout: Rollout) -> list[LastAnswer]:
    """Each of its completions."""
    logp_NT = rollout.full_logprobs.float().masked_fill(~rollout.sampled, torch.nan)
    out = []
    for n, prompt in enumerate(rollout.prompts):
        length = int(rollout.length[n])
        ids = torch.tensor(prompt, dtype=torch.long, device="cpu")
        out.append(LastAnswer(ids, rollout.token_ids[n, :length].clone(), logp_NT[n, :length].clone()))
    return out


def packed(answers: Sequence[LastAnswer]) -> dict[str, Tensor]:
    """All of them in a few tensors, for a checkpoint or another rank."""
    sizes = [[len(one.prompt) for one in answers], [len(one.completion) for one in answers]]
    prompt_sizes, completion_sizes = (torch.tensor(of, dtype=torch.long, device="cpu") for of in sizes)
    return {
        "prompt_sizes": prompt_sizes,
        "prompts": torch.cat([NONE.prompt, *(one.prompt for one in answers)]),
        "completion_sizes": completion_sizes,
        "completions": torch.cat([NONE.completion, *(one.completion for one in answers)]),
        "logp": torch.cat([NONE.logp, *(one.logp for one in answers)]),
    }


def unpacked(state: dict[str, Tensor]) -> list[LastAnswer]:
    """The inverse of `packed`."""
    prompts = state["prompts"].split(state["prompt_sizes"].tolist())
    sizes = state["completion_sizes"].tolist()
    parts = zip(prompts, state["completions"].split(sizes), state["logp"].split(sizes), strict=True)
    return [LastAnswer(*(part.clone() for part in one)) for one in parts]  # a view would keep all others alive


def of_all_ranks(answers: Sequence[LastAnswer], device: torch.device) -> list[LastAnswer]:
    """Those of all ranks, one rank after the other. Every rank must call."""
    return unpacked({name: gather_values(value.to(device)).cpu() for name, value in packed(answers).items()})


def as_rollout(answers: Sequence[LastAnswer], number_P: Tensor) -> Rollout:
    """As completions of the prompts of these numbers, with what they were drawn with."""
    length_P = torch.tensor([len(one.completion) for one in answers], dtype=torch.long, device="cpu")
    ids_PT = _padded([one.completion for one in answers], 0)
    logp_PT = _padded([one.logp for one in answers], torch.nan)
    there_PT = ~logp_PT.isnan()
    logp_PT = logp_PT.nan_to_num(nan=0.0)
    return Rollout(
        prompt_id=number_P,
        sample=torch.zeros_like(number_P),
        seed=torch.zeros_like(number_P),
        prompts=[one.prompt.tolist() for one in answers],
        token_ids=ids_PT,
        length=length_P,
        sampled=there_PT,
        text=[""] * len(answers),
        logprobs=logp_PT,
        full_logprobs=logp_PT,
        entropy=torch.zeros_like(logp_PT),
        kept=Kept(
            offsets=torch.zeros(ids_PT.numel() + 1, dtype=torch.long, device="cpu"),
            ids=torch.zeros(0, dtype=torch.long, device="cpu"),
        ),
        stop_reason=["stop_id"] * len(answers),
        weights_version=0,
    )


def _padded(values: Sequence[Tensor], fill: float) -> Tensor:
    some = [value for value in values if len(value)]
    empty = torch.zeros(0, dtype=values[0].dtype if values else torch.long, device="cpu")
    if not some:
        return empty.expand(len(values), 0).to(torch.float32 if fill else torch.long)
    return pad_sequence(list(values), batch_first=True, padding_value=fill)
