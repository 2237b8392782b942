"""Losses of reward models on pairs of answers, one value a pair: pure functions of the two scores.

    bradley_terry    -log sigmoid(r_chosen - r_rejected - margin)     arXiv 2203.02155, eq. 1; margin: 2307.09288, eq. 2
    centring         (r_chosen + r_rejected)^2                        arXiv 2312.09244, eq. 2

A difference of scores is the log-odds that the one answer is the better. That says nothing of their sum: centring keeps
it near 0, so that the score of one answer means something by itself. Shapes: P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | None = None) -> Tensor:
    """(P,): -log of the probability that the chosen answer wins by the margin. margin_P: NaN where nobody gave one,
    which counts as 0; None: none anywhere."""
    difference_P = chosen_P - rejected_P
    if margin_P is not None:
        difference_P = difference_P - torch.nan_to_num(margin_P, nan=0.0).to(difference_P.dtype)
    return -F.logsigmoid(difference_P)


def centring(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """(P,): the square of the sum of both scores."""
    return (chosen_P + rejected_P).square()
