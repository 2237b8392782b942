"""What is told of a step on preferences, over the whole and by source: sums, each with what it is divided by.

preference/margin             reward of the chosen minus that of the rejected answer; of single answers, by how much
                              the judgement is met: beta (u - z) of a good one, beta (z - u) of a bad one
preference/accuracy           share of pairs, or single answers, whose margin is above 0
preference/{chosen,rejected}_reward      beta u; without a reference beta log pi (by token in simpo and orpo)
preference/{chosen,rejected}_logprob     log pi of the answer; of single answers, the good and the bad ones
preference/chosen_nll         -log pi of a token of the chosen answers
preference/kl                 distance from the reference on a token of the answers, (log pi - log pi_ref)^2 / 2;
                              kto: its z, the KL estimate of the step
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lifecycle.losses.preference import AnswerLogprobs, PairLogprobs

Measured = Mapping[str, tuple[Tensor, Tensor]]
"""By name: a value of each item, and what it counts."""

HELD_OUT = ("accuracy", "margin", "kl", "kl_of")
"""What is added up over held-out items, in this order; kl_of: what kl is divided by, 0 without a reference."""


def of_pairs(
    pairs: PairLogprobs, *, beta: float, by_mean: bool, apart_P: Tensor | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of P pairs. apart_P: squared differences from the reference, summed over the tokens of both answers."""
    ones = torch.ones_like(pairs.chosen)
    if pairs.reference_chosen is not None:
        chosen, rejected = pairs.chosen_ratio, pairs.rejected_ratio
    elif by_mean:
        chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    else:
        chosen, rejected = pairs.chosen, pairs.rejected
    found = {
        "margin": (beta * (chosen - rejected), ones),
        "accuracy": ((chosen > rejected).to(ones.dtype), ones),
        "chosen_reward": (beta * chosen, ones),
        "rejected_reward": (beta * rejected, ones),
        "chosen_logprob": (pairs.chosen, ones),
        "rejected_logprob": (pairs.rejected, ones),
        "chosen_nll": (-pairs.chosen, pairs.chosen_tokens),
    }
    if apart_P is not None:
        found["kl"] = (apart_P / 2, pairs.chosen_tokens + pairs.rejected_tokens)
    return {name: (value.detach(), count) for name, (value, count) in found.items()}


def of_answers(
    answers: AnswerLogprobs, tokens_Q: Tensor, *, beta: float, baseline: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of Q single answers."""
    ratio, policy = answers.ratio.detach(), answers.policy.detach()
    good = answers.wanted.to(ratio.dtype)
    margin = beta * (ratio - baseline) * (2 * good - 1)
    ones = torch.ones_like(ratio)
    return {
        "margin": (margin, ones),
        "accuracy": ((margin > 0).to(ratio.dtype), ones),
        "chosen_reward": (beta * ratio * good, good),
        "rejected_reward": (beta * ratio * (1 - good), 1 - good),
        "chosen_logprob": (policy * good, good),
        "rejected_logprob": (policy * (1 - good), 1 - good),
        "chosen_nll": (-policy * good, tokens_Q * good),
        "kl": (baseline.expand_as(ratio), ones),
    }


def summed(
    measured: Measured, source_ids: Tensor, sources: Sequence[str], *, group: str = "preference"
) -> dict[str, Tensor]:
    """(2,) sums by name, `GROUP/NAME`, and of several sources by each, `GROUP/SOURCE/NAME`.

    source_ids: of every item.
    """
    found = {f"{group}/{name}": torch.stack([v.sum(), n.sum()]) for name, (v, n) in measured.items()}
    if len(sources) < 2:
        return found
    for name, (value, count) in measured.items():
        parts_2S = value.new_zeros(2, len(sources)).index_add_(
            1, source_ids, torch.stack([value, count.to(value.dtype)])
        )
        found |= {f"{group}/{source}/{name}": parts_2S[:, s] for s, source in enumerate(sources)}
    return found


def held_out_sums(measured: Measured) -> Tensor:
    """(HELD_OUT,) float64, of held-out items."""
    accuracy, margin = measured["accuracy"][0].double().sum(), measured["margin"][0].double().sum()
    none = accuracy.new_zeros(2)
    kl = torch.stack([part.double().sum() for part in measured["kl"]]) if "kl" in measured else none
    return torch.cat([torch.stack([accuracy, margin]), kl])


def held_out(means: Mapping[str, float], count: float) -> dict[str, float]:
    """What is logged of the means of `HELD_OUT`: accuracy, margin, and the distance from a reference."""
    found = {name: means[name] for name in ("accuracy", "margin")}
    return found | ({"kl": means["kl"] / means["kl_of"]} if means["kl_of"] else {})
