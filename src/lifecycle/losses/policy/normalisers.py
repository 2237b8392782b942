"""What the sum over the tokens of a step is divided by: how much a long answer counts beside a short one.

    loss = - sum over tokens of w_S objective_N  /  sum over samples of d_S

    token       w = 1             d = tokens of the sample      all tokens of the step equal: DAPO, arXiv 2503.14476
    sequence    w = 1 / tokens    d = 1                         all samples equal: GRPO, 2402.03300; GSPO, 2507.18071
    prompt      w = 1 / tokens    d = 1 / samples of            all prompts equal, and the tokens within one: CISPO,
                of the group      the group                     2506.13585; ScaleRL, 2510.13786
    constant    w = 1 / length    d = 1                         a sum that no length divides: Dr. GRPO, 2503.20783

Both sums go over all ranks and micro-batches of an optimizer step, and w and d belong to a sample: a step that is split
anywhere, also within a group, has the same gradient. Whoever averages gradients over ranks multiplies by their number.

A sample without trained tokens (masked because it was cut off, say) counts neither in `sequence` nor in `prompt`; in
`constant` it counts, as the divisor would depend on lengths otherwise. Where all d are 0 there is nothing to train on.

Shapes: S samples of an optimizer step, N trained tokens, G groups numbered 0 to G - 1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.losses.policy.sums import how_many, sums_of

NormaliserName = Literal["token", "sequence", "prompt", "constant"]
"""What counts equally."""


class Normaliser(NamedTuple):
    """Of S samples: what each of their tokens is multiplied by, and what they add to the divisor."""

    weight_S: Tensor
    divisor_S: Tensor


def normaliser(
    tokens_S: Tensor, group_S: Tensor, *, kind: NormaliserName, length: int | None, dtype: torch.dtype = torch.float64
) -> Normaliser:
    """Of ALL samples of an optimizer step, over all ranks: gather `tokens_S` and `group_S` first, take your own rows of
    what comes back, and `weight_S[sequence_N]` for tokens. Meant for tensors on the CPU, as those of `advantages`.

    tokens_S: int64, trained tokens of each sample. group_S: int64. length: the divisor of `constant`, in tokens: one
    number of the configuration, such as the longest answer allowed, never the width that a batch happens to have.
    """
    tokens_S = tokens_S.to(dtype)
    has_S = (tokens_S > 0).to(dtype)
    match kind:
        case "token":
            return Normaliser(torch.ones_like(tokens_S), tokens_S)
        case "sequence":
            return Normaliser(has_S / tokens_S.clamp(min=1), has_S)
        case "prompt":
            groups = how_many(group_S)
            of_group_S = sums_of(tokens_S, group_S, groups)[group_S]
            samples_S = sums_of(has_S, group_S, groups)[group_S]
            return Normaliser(has_S / of_group_S.clamp(min=1), has_S / samples_S.clamp(min=1))
        case "constant":
            if length is None or length < 1:
                raise UserError(
                    f"normaliser `constant` has length={length}; wanted tokens, at least 1: give it max_new_tokens"
                )
            return Normaliser(torch.full_like(tokens_S, 1 / length), torch.ones_like(tokens_S))
