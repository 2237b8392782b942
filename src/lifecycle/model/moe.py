"""A mixture of experts: each token passes through the few feed-forward parts that a router chooses for it.

    s = softmax(W_r x) or sigmoid(W_r x)                     a score for every expert
    chosen = the `active` best of s + bias                   within the best groups of experts, if there are groups
    out = sum over chosen of g_e FFN_e(x)  +  shared(x)      g = scale * s, divided by their sum if `normalise`

The bias only chooses (arXiv 2408.15664): after each step `balanced` moves it towards even loads. No token is dropped.
Tokens are sorted by expert, so that every expert makes one product: grouped products on CUDA in bf16, else a loop over
the experts that have tokens.

Shapes: B rows, T positions, N = B * T tokens, D width, E experts, A experts a token visits, M = N * A visits, F width
of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifecycle.model.layers import FeedForward
from lifecycle.model.switches import MoE

_FIXED: ContextVar[bool] = ContextVar("fixed shapes of experts' products", default=False)


@contextmanager
def fixed_shapes() -> Iterator[None]:
    """Within it every expert multiplies as many rows as there are tokens, however few are its own: what it makes of a
    token then has the same bits whatever the other tokens chose. Slower, and without gradients."""
    token = _FIXED.set(True)
    try:
        yield
    finally:
        _FIXED.reset(token)


class Routing(NamedTuple):
    """What a forward pass of one block, or of the whole model with a layer dimension in front, did with its tokens.

    loads: (E,) int64, visits of each expert by the counted tokens. balance: scalar, the balance loss summed over the
    counted tokens (see `balance_loss`).
    """

    loads: Tensor
    balance: Tensor


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


class Experts(nn.Module):
    """SwiGLU parts side by side, their matrices stacked."""

    def __init__(self, moe: MoE, *, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(moe.experts, moe.ffn_width, width))
        self.up_proj = nn.Parameter(torch.empty(moe.experts, moe.ffn_width, width))
        self.down_proj = nn.Parameter(torch.empty(moe.experts, width, moe.ffn_width))

    def forward(self, x_ND: Tensor, weights_NA: Tensor, chosen_NA: Tensor) -> Tensor:
        """(N, D): the weighted sum of what the chosen experts make of each token."""
        sorted_M, order_M = chosen_NA.flatten().sort(stable=True)
        back_M = torch.empty_like(order_M)
        back_M[order_M] = torch.arange(len(order_M), device=order_M.device)
        ends_E = torch.searchsorted(sorted_M, torch.arange(len(self.gate_proj), device=x_ND.device), right=True)
        x_MD, linear = spread(x_ND, order_M, back_M), grouped_linear
        if _FIXED.get():  # a token visits an expert once at most
            linear = partial(padded_linear, rows=len(x_ND))
        inner_MF = F.silu(linear(x_MD, self.gate_proj, ends_E)) * linear(x_MD, self.up_proj, ends_E)
        out_MD = linear(inner_MF, self.down_proj, ends_E)
        out_NAD = spread(out_MD, back_M, order_M).unflatten(0, chosen_NA.shape)
        return torch.bmm(weights_NA.to(out_NAD.dtype)[:, None], out_NAD)[:, 0]


class MoEFeedForward(nn.Module):
    """The feed-forward part of a block with experts."""

    def __init__(self, moe: MoE, *, width: int, bias: bool) -> None:
        super().__init__()
        self.moe = moe
        self.router = Router(moe, width=width, bias=bias)
        self.experts = Experts(moe, width=width)
        self.shared = FeedForward(width=width, ffn_width=moe.shared_width) if moe.shared else None
        self.shared_gate = nn.Linear(width, 1, bias=False) if moe.shared_gate else None

    def forward(self, x_BTD: Tensor, counted_BT: Tensor | None = None) -> tuple[Tensor, Routing | None]:
        """(B, T, D), and how the tokens marked in `counted_BT` (bool) were routed; None: nothing is counted."""
        x_ND = x_BTD.flatten(0, 1)
        scores_NE = self.router(x_ND)
        weights_NA, chosen_NA = choose(scores_NE, self.router.bias, self.moe)
        out_ND = self.experts(x_ND, weights_NA, chosen_NA)
        if self.shared is not None:
            shared_ND = self.shared(x_ND)
            out_ND = out_ND + (shared_ND if self.shared_gate is None else self.shared_gate(x_ND).sigmoid() * shared_ND)
        routing = None if counted_BT is None else self._routing(scores_NE, chosen_NA, counted_BT)
        return out_ND.view_as(x_BTD), routing

    def _routing(self, scores_NE: Tensor, chosen_NA: Tensor, counted_BT: Tensor) -> Routing:
        visits_NE = torch.zeros_like(scores_NE).scatter_(1, chosen_NA, 1.0) * counted_BT.flatten()[:, None]
        visits_BTE = visits_NE.unflatten(0, counted_BT.shape)
        loads_E = visits_BTE.sum((0, 1)).long()
        if not self.moe.balance:
            return Routing(loads=loads_E, balance=scores_NE.new_zeros(()))
        scores_BTE = scores_NE.unflatten(0, counted_BT.shape)
        return Routing(loads=loads_E, balance=self.moe.balance * balance_loss(scores_BTE, visits_BTE, counted_BT))


def choose(scores_NE: Tensor, bias_E: Tensor | None, moe: MoE) -> tuple[Tensor, Tensor]:
    """Weights (N, A) and numbers (N, A) of the experts that each token visits, from its scores.

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
    chosen_NA = ranked_NE.topk(moe.active, dim=-1, sorted=False).indices
    weights_NA = scores_NE.gather(1, chosen_NA)
    if moe.normalise:
        # sigmoids may all be 0 in fp32
        weights_NA = weights_NA / (weights_NA.sum(-1, keepdim=True) + 1e-20)
    return weights_NA * moe.scale if moe.scale != 1 else weights_NA, chosen_NA


def balance_loss(scores_BTE: Tensor, visits_BTE: Tensor, counted_BT: Tensor) -> Tensor:
    """Sequence-wise balance loss (arXiv 2412.19437, eq. 17-20 without its weight), a scalar: over rows, the sum of

        n * sum over experts of [E / (A n) visits_e] [mean over tokens of s_e / sum of s],   n counted tokens

    so that divided by the counted tokens of a step it is the mean over tokens, however rows are split up.
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


# -- products over sorted tokens
#
# Operations of their own (torch.library): a compiler cannot see how many rows each expert gets, and the backward passes
# are look-ups and products instead of the scattered sums that autograd would write.


def grouped_linear(x_MD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
    """Rows [ends[e - 1], ends[e]) of x times weight[e]' -> (M, F), in the autocast dtype where autocast is on."""
    device_type = x_MD.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x_MD.dtype
    x_MD, weight_EFD = x_MD.to(dtype), weight_EFD.to(dtype)
    # the kernel wants rows of whole 16 bytes
    if device_type == "cuda" and dtype == torch.bfloat16 and all(n % 8 == 0 for n in weight_EFD.shape[1:]):
        return F.grouped_mm(x_MD, weight_EFD.mT, offs=ends_E.to(torch.int32))
    out: Tensor = _grouped_linear(x_MD, weight_EFD, ends_E)
    return out


def padded_linear(x_MD: Tensor, weight_EFD: Tensor, ends_E: Tensor, *, rows: int) -> Tensor:
    """The same in products of `rows` rows each, filled up with zeros; without gradients."""
    out, start = [], 0
    for weight_FD, end in zip(weight_EFD, ends_E.tolist(), strict=True):
        if end > start:
            filled = F.pad(x_MD[start:end], (0, 0, 0, rows - (end - start)))
            out.append(F.linear(filled, weight_FD)[: end - start])
        start = end
    return torch.cat(out)


def spread(x_ND: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
    """Row order[m] // (M / N) of x as row m -> (M, D); `back_M` is the inverse of the permutation `order_M`."""
    out: Tensor = _spread(x_ND, order_M, back_M)
    return out


@torch.library.custom_op("lifecycle::grouped_linear", mutates_args=())
def _grouped_linear(x_MD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
    out_MF = x_MD.new_empty(x_MD.shape[0], weight_EFD.shape[1])
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            torch.mm(x_MD[start:end], weight_EFD[expert].T, out=out_MF[start:end])
        start = end
    return out_MF


@_grouped_linear.register_fake
def _(x_MD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
    return x_MD.new_empty(x_MD.shape[0], weight_EFD.shape[1])


@torch.library.custom_op("lifecycle::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(
    grad_MF: Tensor, x_MD: Tensor, weight_EFD: Tensor, ends_E: Tensor
) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight = torch.empty_like(x_MD), torch.empty_like(weight_EFD)
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            torch.mm(grad_MF[start:end], weight_EFD[expert], out=grad_x[start:end])
            torch.mm(grad_MF[start:end].T, x_MD[start:end], out=grad_weight[expert])
        else:
            grad_weight[expert].zero_()
        start = end
    return grad_x, grad_weight


@_grouped_linear_backward.register_fake
def _(grad_MF: Tensor, x_MD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_MD), torch.empty_like(weight_EFD)


@torch.library.custom_op("lifecycle::spread", mutates_args=())
def _spread(x_ND: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
    return x_ND.index_select(0, order_M // (len(order_M) // len(x_ND)))


@_spread.register_fake
def _(x_ND: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
    return x_ND.new_empty(order_M.shape[0], x_ND.shape[1])


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_linear_grads(ctx: Any, grad_MF: Tensor) -> tuple[Tensor, Tensor, None]:
    grad_x, grad_weight = _grouped_linear_backward(grad_MF.contiguous(), *ctx.saved_tensors)
    return grad_x, grad_weight, None


def _keep_way_back(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])
    ctx.visits = len(inputs[1]) // len(inputs[0])


def _spread_grads(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None]:
    (back_M,) = ctx.saved_tensors
    grad_NAD = grad_MD.index_select(0, back_M).unflatten(0, (-1, ctx.visits))
    return (grad_NAD[:, 0] if ctx.visits == 1 else grad_NAD.sum(1)), None, None


_grouped_linear.register_autograd(_grouped_linear_grads, setup_context=_keep_inputs)
_spread.register_autograd(_spread_grads, setup_context=_keep_way_back)
