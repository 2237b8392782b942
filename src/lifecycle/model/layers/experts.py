"""The outputs of the chosen experts for each token: SwiGLU parts side by side, their matrices stacked.

    out_n = sum over its visits of w E_e(x_n)          E_e(x) = down_e(silu(gate_e x) * up_e x)

Visits are sorted by expert, so that every expert makes one product. In bf16 on CUDA these are grouped products, whose
sizes the host need not know; else a loop over the experts that have tokens, which keeps the activations of one expert
in the processor's cache:

    rows = x[tokens of e];  g, u = rows gate_e', rows up_e';  out[tokens of e] += (w silu(g) u) down_e'

Shapes: N tokens, D width, E experts, A experts a token visits, M = N * A visits, F width of an expert, m visits of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifecycle.model.layers.norm_swiglu import gated, gated_gradient
from lifecycle.model.precision import product_dtype

GROUPING = (9, 10)
"""Generations of NVIDIA GPUs on which torch groups products by a kernel; on others it asks the host for their sizes."""

_FIXED: ContextVar[bool] = ContextVar("fixed shapes of experts' products", default=False)


@contextmanager
def fixed_shapes() -> Iterator[None]:
    """Within it every expert multiplies as many rows as there are tokens, however few are its own: its output for a
    token then has the same bits whatever the other tokens chose. Slower, and without gradients."""
    token = _FIXED.set(True)
    try:
        yield
    finally:
        _FIXED.reset(token)


class Experts(nn.Module):
    """gate_proj, up_proj (E, F, D) and down_proj (E, D, F)."""

    def __init__(self, count: int, *, width: int, ffn_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(count, ffn_width, width))
        self.up_proj = nn.Parameter(torch.empty(count, ffn_width, width))
        self.down_proj = nn.Parameter(torch.empty(count, width, ffn_width))

    def forward(self, x_ND: Tensor, w_NA: Tensor, chosen_NA: Tensor) -> Tensor:
        """(N, D): the sum of the chosen experts' outputs for each token x_ND, weighted by w_NA, experts chosen_NA; in
        the autocast dtype if it is on."""
        sorted_M, order_M = chosen_NA.flatten().sort(stable=True)
        experts_E = torch.arange(len(self.gate_proj), device=x_ND.device)
        ends_E = torch.searchsorted(sorted_M, experts_E, right=True)
        dtype = product_dtype(x_ND, x_ND.dtype)
        matrices = tuple(m.to(dtype) for m in (self.gate_proj, self.up_proj, self.down_proj))
        given = (x_ND.to(dtype), w_NA.to(dtype), order_M, ends_E, *matrices)
        # compilers cannot read context variables; what samples with fixed shapes runs eagerly
        if not torch.compiler.is_compiling() and _FIXED.get():
            return padded(*given)
        if x_ND.is_cuda and dtype == torch.bfloat16 and self._has_whole_rows:
            return grouped(*given)
        out: Tensor = by_expert(*given)[0]
        return out

    @property
    def _has_whole_rows(self) -> bool:
        """Whether its widths are those that the kernel of grouped products wants: rows of whole 16 bytes."""
        return all(n % 8 == 0 for n in self.gate_proj.shape[1:])

    def why_the_host_waits(self, dtype: torch.dtype) -> str | None:
        """Why the host must know how many rows each expert gets where products run in `dtype`; None: it need not."""
        device, (inner, width) = self.gate_proj.device, self.gate_proj.shape[1:]
        if device.type != "cuda":
            return f"experts multiply one after the other on {device.type}"
        if dtype != torch.bfloat16:
            return f"experts multiply one after the other in {dtype}; in bf16 they would not"
        if not self._has_whole_rows:
            return f"experts that are {inner} and {width} wide multiply one after the other; multiples of 8 would not"
        generation = torch.cuda.get_device_capability(device)[0]
        if generation not in GROUPING:
            return f"torch groups experts' products on GPUs of capability {GROUPING} alone, and this has {generation}"
        return None


def grouped(
    x_ND: Tensor, w_NA: Tensor, order_M: Tensor, ends_E: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """(N, D) in products of all experts at once, on CUDA; arguments as of `by_expert`."""
    back_M = inverse(order_M)
    ends, x_MD = ends_E.to(torch.int32), spread(x_ND, order_M, back_M)
    gate_MF, up_MF = (F.grouped_mm(x_MD, weight.mT, offs=ends) for weight in (gate_EFD, up_EFD))
    out_MD = F.grouped_mm(F.silu(gate_MF) * up_MF, down_EDF.mT, offs=ends)
    return combined(out_MD, w_NA, order_M, back_M)


def padded(
    x_ND: Tensor, w_NA: Tensor, order_M: Tensor, ends_E: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """(N, D) in products of N rows each, filled up with zeros; a token visits an expert once at most. No gradients."""
    out_MD = x_ND.new_empty(len(order_M), x_ND.shape[1])
    for expert, visits in _visits(ends_E):
        rows = x_ND.index_select(0, order_M[visits] // w_NA.shape[1])
        filled = F.pad(rows, (0, 0, 0, len(x_ND) - len(rows)))
        inner = gated(F.linear(filled, gate_EFD[expert]), F.linear(filled, up_EFD[expert]))
        out_MD[visits] = F.linear(inner, down_EDF[expert])[: len(rows)]
    return combined(out_MD, w_NA, order_M, inverse(order_M))


def combined(out_MD: Tensor, w_NA: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
    """(N, D): the weighted sum of each token's visits."""
    out_NAD = spread(out_MD, back_M, order_M).unflatten(0, w_NA.shape)
    return torch.bmm(w_NA[:, None], out_NAD)[:, 0]


def inverse(order_M: Tensor) -> Tensor:
    """The permutation that undoes this one."""
    back_M = torch.empty_like(order_M)
    back_M[order_M] = torch.arange(len(order_M), device=order_M.device)
    return back_M


def spread(x_ND: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
    """Row order[m] // (M / N) of x as row m -> (M, D); `back_M` is the inverse of the permutation `order_M`."""
    out: Tensor = _spread(x_ND, order_M, back_M)
    return out


def _visits(ends_E: Tensor) -> Iterator[tuple[int, slice]]:
    """The experts that have any, and which."""
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            yield expert, slice(start, end)
        start = end


def _add_rows(to_ND: Tensor, rows_m: Tensor, made_mD: Tensor) -> None:
    """Rows differ, so that this is exact and quicker than `index_add_`."""
    to_ND.index_copy_(0, rows_m, to_ND.index_select(0, rows_m).add_(made_mD))


# -- operations of their own (torch.library): a compiler cannot see how many rows each expert gets, and the backward
# passes are look-ups and products instead of the scattered sums that autograd would write.


@torch.library.custom_op("lifecycle::by_expert", mutates_args=())
def by_expert(
    x_ND: Tensor, w_NA: Tensor, order_M: Tensor, ends_E: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D) by the formula, and of every visit what gate and up made, for the backward pass. Visit m in the order of
    experts is visit order[m] of those in the order of tokens; those of expert e end at ends[e]."""
    out_ND = torch.zeros(x_ND.shape, dtype=_sums(x_ND), device=x_ND.device)
    gate_MF, up_MF = (x_ND.new_empty(len(order_M), gate_EFD.shape[1]) for _ in range(2))
    w_M = w_NA.flatten()[order_M]
    for expert, visits in _visits(ends_E):
        tokens_m = order_M[visits] // w_NA.shape[1]
        rows_mD = x_ND.index_select(0, tokens_m)
        torch.mm(rows_mD, gate_EFD[expert].T, out=gate_MF[visits])
        torch.mm(rows_mD, up_EFD[expert].T, out=up_MF[visits])
        inner_mF = gated(gate_MF[visits], up_MF[visits])
        _add_rows(out_ND, tokens_m, (inner_mF @ down_EDF[expert].T).mul_(w_M[visits, None]))
    return out_ND.to(x_ND.dtype), gate_MF, up_MF


@by_expert.register_fake
def _(
    x_ND: Tensor, w_NA: Tensor, order_M: Tensor, ends_E: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gate_MF, up_MF = (x_ND.new_empty(order_M.shape[0], gate_EFD.shape[1]) for _ in range(2))
    return torch.empty_like(x_ND), gate_MF, up_MF


@torch.library.custom_op("lifecycle::by_expert_backward", mutates_args=())
def _by_expert_backward(
    grad_ND: Tensor,
    x_ND: Tensor,
    w_NA: Tensor,
    order_M: Tensor,
    ends_E: Tensor,
    gate_EFD: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    gate_MF: Tensor,
    up_MF: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_x = torch.zeros(x_ND.shape, dtype=_sums(x_ND), device=x_ND.device)
    grad_gate, grad_up, grad_down = (torch.zeros_like(weight) for weight in (gate_EFD, up_EFD, down_EDF))
    w_M, grad_w_M = w_NA.flatten()[order_M], torch.empty_like(w_NA.flatten())
    for expert, visits in _visits(ends_E):
        tokens_m = order_M[visits] // w_NA.shape[1]
        rows_mD, grad_mD = x_ND.index_select(0, tokens_m), grad_ND.index_select(0, tokens_m)
        gate_mF, up_mF, w_m1 = gate_MF[visits], up_MF[visits], w_M[visits, None]
        inner_mF, of_inner_mF = gated(gate_mF, up_mF), grad_mD @ down_EDF[expert]
        grad_w_M[order_M[visits]] = torch.linalg.vecdot(of_inner_mF, inner_mF)
        torch.mm(grad_mD.T, inner_mF.mul_(w_m1), out=grad_down[expert])
        of_gate_mF, of_up_mF = gated_gradient(of_inner_mF.mul_(w_m1), gate_mF, up_mF)
        torch.mm(of_gate_mF.T, rows_mD, out=grad_gate[expert])
        torch.mm(of_up_mF.T, rows_mD, out=grad_up[expert])
        _add_rows(grad_x, tokens_m, (of_gate_mF @ gate_EFD[expert]).addmm_(of_up_mF, up_EFD[expert]))
    return grad_x.to(x_ND.dtype), grad_w_M.view_as(w_NA), grad_gate, grad_up, grad_down


@_by_expert_backward.register_fake
def _(
    grad_ND: Tensor, x_ND: Tensor, w_NA: Tensor, order_M: Tensor, ends_E: Tensor, *matrices_and_made: Tensor
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in (x_ND, w_NA, *matrices_and_made[:3]))


@torch.library.custom_op("lifecycle::spread", mutates_args=())
def _spread(x_ND: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
    return x_ND.index_select(0, order_M // (len(order_M) // len(x_ND)))


@_spread.register_fake
def _(x_ND: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
    return x_ND.new_empty(order_M.shape[0], x_ND.shape[1])


def _sums(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.set_materialize_grads(False)  # nothing comes back to what was kept


def _by_expert_grads(ctx: Any, grad_ND: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_ND is None:
        return (None,) * 7
    grads = _by_expert_backward(grad_ND.contiguous(), *ctx.saved_tensors)
    return grads[0], grads[1], None, None, *grads[2:]


def _keep_way_back(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])
    ctx.visits = len(inputs[1]) // len(inputs[0])


def _spread_grads(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None]:
    (back_M,) = ctx.saved_tensors
    grad_NAD = grad_MD.index_select(0, back_M).unflatten(0, (-1, ctx.visits))
    return (grad_NAD[:, 0] if ctx.visits == 1 else grad_NAD.sum(1)), None, None


by_expert.register_autograd(_by_expert_grads, setup_context=_keep)
_spread.register_autograd(_spread_grads, setup_context=_keep_way_back)
