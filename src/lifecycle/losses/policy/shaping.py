"""What is taken off a reward: for length of a sample, and for distance from a reference of each of its tokens.

    overlong    0 for L <= longest - buffer, then down in a line to -1 at L = longest             DAPO, arXiv 2503.14476
    by token    R_t = - k KL_t, and at the last token of a sample + score                        PPO, 1909.08593

Rewards are constants: nothing here has a gradient. Shapes: S samples, N trained tokens, the tokens of a sample together
and in their order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.errors import UserError


def overlong_penalty(length_S: Tensor, *, longest: int, buffer: int) -> Tensor:
    """(S,) fp64, 0 to -1: a further reward, added to what the answer earns. length_S: tokens, the end among them."""
    if not 0 < buffer <= longest:
        raise UserError(
            f"overlong shaping has a buffer of {buffer} tokens before the longest answer of {longest}; wanted 1 to "
            f"{longest}, a fifth of it for example"
        )
    return ((longest - buffer - length_S.double()) / buffer).clamp(-1, 0)


def token_rewards(score_S: Tensor, kl_N: Tensor, sequence_N: Tensor, *, coefficient: float) -> Tensor:
    """(N,) of every token: the score of a sample at its last token, whether that ends the answer or was cut off.

    score_S: a missing one (NaN) counts as 0: leave such samples out of the update. kl_N: `kl(kind="k1")` of the old
    policy.
    """
    score_S = score_S.nan_to_num(nan=0.0)
    last_N = F.pad(sequence_N[1:] != sequence_N[:-1], (0, 1), value=True)[: len(sequence_N)]
    at_end_N = score_S[sequence_N].to(kl_N.dtype)
    return -coefficient * kl_N.detach() + torch.where(last_N, at_end_N, torch.zeros_like(at_end_N))
