"""A mixture of experts: each token passes through the few feed-forward parts that a router chooses for it.

    s = softmax(W_r x) or sigmoid(W_r x)                     a score for every expert
    chosen = the `active` best of s + bias                   within the best groups of experts, if there are groups
    out = sum over chosen of g_e FFN_e(x)  +  shared(x)      g = scale * s, divided by their sum if `normalise`

The bias only chooses (arXiv 2408.15664): after each step `balanced` moves it towards even loads. No token is dropped.
How the experts multiply is in experts.py.

Shapes: B sequences, T positions, N = B * T tokens, D width, E experts, A experts a token visits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifecycle.model.layers.experts import Experts
from lifecycle.model.layers.norm_swiglu import FeedForward
from lifecycle.model.parts import MoE


class Routing(NamedTuple):
    """How a forward pass of one block routed its tokens; of the whole model: with a layer dimension in front.

    loads: (E,) int64, visits of each expert by the counted tokens. balance: scalar, the balance loss summed over the
    counted tokens (see `balance_loss`). rerouted: int64 scalar, tokens whose known experts are not those of now.
    """

    loads: Tensor
    balance: Tensor
    rerouted: Tensor


class KnownRoutes(NamedTuple):
    """The experts that tokens visited before, under other weights: (N, A) int64 of one block, (N, layers, A) of the
    whole model; -1: not known. keep: whether they visit these again, with weights by the scores of now."""

    experts: Tensor
    keep: bool

    def of(self, layer: int) -> KnownRoutes:
        """Those of one of the blocks with experts."""
        return KnownRoutes(self.experts[:, layer], self.keep)

    def taken(self, chosen_NA: Tensor) -> tuple[Tensor, Tensor]:
        """The experts that are visited where `chosen_NA` would be; and how many tokens would visit others now."""
        known_N1 = self.experts[:, :1] >= 0
        other_N = (self.experts.sort(-1).values != chosen_NA.sort(-1).values).any(-1)
        taken_NA = torch.where(known_N1, self.experts, chosen_NA) if self.keep else chosen_NA
        return taken_NA, (other_N & known_N1[:, 0]).sum()


class Router(nn.Module):
    """Scores of each token for each expert, in fp32: rounded scores would send tokens elsewhere."""

    def __init__(self, moe: MoE, *, width: int, bias: bool) -> None:
        super().__init__()
        self.moe = moe
        self.weight = nn.Parameter(torch.empty(moe.experts, width))
        self.register_buffer("bias", torch.zeros(moe.experts) if bias else None)
        self.bias: Tensor | None

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, E) scores."""
        with torch.autocast(x_ND.device.type, enabled=False):
            exact = torch.float64 if x_ND.dtype == torch.float64 else torch.float32
            logits_NE = F.linear(x_ND.to(exact), self.weight.to(exact))
            return logits_NE.softmax(-1) if self.moe.score == "softmax" else logits_NE.sigmoid()


class MoEFeedForward(nn.Module):
    """The feed-forward part of a block with experts."""

    def __init__(self, moe: MoE, *, width: int, bias: bool) -> None:
        super().__init__()
        self.moe = moe
        self.router = Router(moe, width=width, bias=bias)
        self.experts = Experts(moe.experts, width=width, ffn_width=moe.ffn_width)
        self.shared = FeedForward(width=width, ffn_width=moe.shared_width) if moe.shared else None
        self.shared_gate = nn.Linear(width, 1, bias=False) if moe.shared_gate else None

    def forward(
        self,
        x_BTD: Tensor,
        counted_BT: Tensor | None = None,
        known: KnownRoutes | None = None,
        visited: list[Tensor] | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """(B, T, D), and how the tokens marked in `counted_BT` (bool) were routed; None: nothing is counted. known:
        the experts that they visited before. visited: gets those that they visit, (N, A)."""
        x_ND = x_BTD.flatten(0, 1)
        scores_NE = self.router(x_ND)
        chosen_NA, rerouted = best_experts(scores_NE, self.router.bias, self.moe), None
        if known is not None:
            chosen_NA, rerouted = known.taken(chosen_NA)
        if visited is not None:
            visited.append(chosen_NA)
        weights_NA = weights_of(scores_NE, chosen_NA, self.moe)
        out_ND = self.experts(x_ND, weights_NA, chosen_NA)
        if self.shared is not None:
            shared_ND = self.shared(x_ND)
            out_ND = out_ND + (shared_ND if self.shared_gate is None else self.shared_gate(x_ND).sigmoid() * shared_ND)
        routing = None if counted_BT is None else self._routing(scores_NE, chosen_NA, counted_BT, rerouted)
        return out_ND.view_as(x_BTD), routing

    def _routing(self, scores_NE: Tensor, chosen_NA: Tensor, counted_BT: Tensor, rerouted: Tensor | None) -> Routing:
        visits_NE = torch.zeros_like(scores_NE).scatter_(1, chosen_NA, 1.0) * counted_BT.flatten()[:, None]
        visits_BTE = visits_NE.unflatten(0, counted_BT.shape)
        loads_E = visits_BTE.sum((0, 1)).long()
        rerouted = loads_E.new_zeros(()) if rerouted is None else rerouted
        if not self.moe.balance:
            return Routing(loads=loads_E, balance=scores_NE.new_zeros(()), rerouted=rerouted)
        balance = self.moe.balance * balance_loss(scores_NE.unflatten(0, counted_BT.shape), visits_BTE, counted_BT)
        return Routing(loads=loads_E, balance=balance, rerouted=rerouted)


def choose(scores_NE: Tensor, bias_E: Tensor | None, moe: MoE) -> tuple[Tensor, Tensor]:
    """Weights (N, A) and numbers (N, A) of the experts that each token visits, from its scores."""
    chosen_NA = best_experts(scores_NE, bias_E, moe)
    return weights_of(scores_NE, chosen_NA, moe), chosen_NA


def best_experts(scores_NE: Tensor, bias_E: Tensor | None, moe: MoE) -> Tensor:
    """(N, A): the numbers of the experts that each token visits.

    A group counts by its best score (softmax, arXiv 2405.04434, section 2.2.2) or its two best (sigmoid, arXiv
    2412.19437, section 2.1.2). The bias takes part in the choice, not in the weights.
    """
    ranked_NE = scores_NE.detach() if bias_E is None else scores_NE.detach() + bias_E
    if moe.active_groups < moe.groups:
        grouped_NGE = ranked_NE.unflatten(1, (moe.groups, -1))
        worth_NG = grouped_NGE.topk(1 if moe.score == "softmax" else 2, dim=-1).values.sum(-1)
        best = worth_NG.topk(moe.active_groups, dim=-1, sorted=False).indices
        closed_NG = torch.ones_like(worth_NG, dtype=torch.bool).scatter_(1, best, False)
        ranked_NE = grouped_NGE.masked_fill(closed_NG[..., None], -torch.inf).flatten(1)
    return ranked_NE.topk(moe.active, dim=-1, sorted=False).indices


def weights_of(scores_NE: Tensor, chosen_NA: Tensor, moe: MoE) -> Tensor:
    """(N, A): what the outputs of these experts are multiplied by."""
    weights_NA = scores_NE.gather(1, chosen_NA)
    if moe.normalise:
        # sigmoids may all be 0 in fp32
        weights_NA = weights_NA / (weights_NA.sum(-1, keepdim=True) + 1e-20)
    return weights_NA * moe.scale if moe.scale != 1 else weights_NA


def balance_loss(scores_BTE: Tensor, visits_BTE: Tensor, counted_BT: Tensor) -> Tensor:
    """Sequence-wise balance loss (arXiv 2412.19437, eq. 17-20 without its weight), a scalar: over sequences, the sum of

        n * sum over experts of [E / (A n) visits_e] [mean over tokens of s_e / sum of s],   n counted tokens

    so that divided by the counted tokens of a step it is the mean over tokens, however sequences are split up.
    """
    counted_BT1 = counted_BT[..., None].to(scores_BTE.dtype)
    shares_BE = (scores_BTE / scores_BTE.sum(-1, keepdim=True) * counted_BT1).sum(1)
    visits_BE = visits_BTE.sum(1)
    evenly_B1 = visits_BE.mean(-1, keepdim=True).clamp(min=1e-20)  # A n / E
    return (visits_BE / evenly_B1 * shares_BE).sum()


def balanced(bias_E: Tensor, loads_E: Tensor, rate: float) -> Tensor:
    """The next choice bias: experts below the mean load gain `rate`, those above lose it (arXiv 2408.15664, alg. 1).

    Loads (..., E) of a whole step, over micro-batches and ranks; biases of the same shape.
    """
    error_E = loads_E.double().mean(-1, keepdim=True) - loads_E.double()
    return bias_E + rate * error_E.sign().to(bias_E.dtype)
