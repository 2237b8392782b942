"""Cross-entropy of the next token straight from hidden states, without ever holding a batch's logits.

    logits = hidden @ weight';  loss = sum over trained tokens of [logsumexp(logits) - logits[label]]
                                     + z_loss * logsumexp(logits)^2          (z-loss: PaLM, arXiv 2204.02311, sec. 5)

each times the weight of its label, if labels have weights. Dynamic fine-tuning (DFT, arXiv 2508.05629, equation 9)
multiplies a token's cross-entropy by its own probability, which is a constant to the gradient:
    loss = sum over trained tokens of -sg(p) log p,    p = exp(logits[label] - logsumexp(logits))
so tokens that the model thinks impossible move it little. With a softcap c, logits are replaced by c tanh(logits / c)
(arXiv 2408.00118, section 2). The logits of one chunk of tokens exist at a time, and once: their gradients,
    d logits = weight * [softmax * (1 + 2 z_loss logsumexp) - onehot(label)] * (1 - tanh(logits / c)^2, if capped),
(with DFT p * weight in the place of weight, but for the z-loss)
are computed in the forward pass too and multiplied into those of hidden and weight, which is all that backward needs.

Shapes: N tokens, D width, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import IGNORED
from lifecycle.losses import terms_on_cpu
from lifecycle.losses.chunks import HeadGradients, check_tokens, chunks, compute_dtype, default_chunk, sum_dtype

Terms = tuple[Tensor, Tensor, Tensor]
"""Summed loss, cross-entropy and penalty."""


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    weights_N: Tensor | None = None,
    z_loss: float = 0.0,
    dft: bool = False,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed loss (scalar, fp32) over the tokens whose label is not -100, and the detached sums of its parts.

    weights_N: factors of the tokens' losses, constants to the gradient; None: all 1. dft: each token's cross-entropy
    counts by its own probability.
    metrics: `count` of trained tokens, `nll` the cross-entropy alone, `z_loss` the penalty alone; loss = nll + z_loss,
    with `dft` the dynamic loss + z_loss.
    Products run in the autocast dtype where autocast is on, else in the dtype of hidden; logarithms, sums and the
    weight's gradient are fp32 (fp64 for fp64 inputs). Differentiable once, in hidden and weight. What happens
    to a chunk's logits between the products is one pass of our own on an NVIDIA GPU (gpu/terms_kernel.py) and on a CPU
    (terms_on_cpu.py); elsewhere `compiled` fuses it.
    Memory beyond the gradients: a few chunks of logits.
    """
    check_tokens(labels_N, vocab=weight_VD.shape[0], ignored=True)
    compute = compute_dtype(hidden_ND)
    count = (labels_N != IGNORED).sum()
    # leaving untrained tokens out needs their number on the host: free on a CPU, a synchronisation elsewhere
    if hidden_ND.device.type == "cpu" and int(count) < len(labels_N):
        trained_N = labels_N != IGNORED
        hidden_ND, labels_N = hidden_ND[trained_N], labels_N[trained_N]
        weights_N = None if weights_N is None else weights_N[trained_N]
    chunk = chunk_tokens or default_chunk(labels_N, vocab=weight_VD.shape[0])
    differentiate = torch.is_grad_enabled()
    with torch.autocast(hidden_ND.device.type, enabled=False):
        loss, nll, penalty = _LinearCrossEntropy.apply(
            hidden_ND, weight_VD, labels_N, weights_N, z_loss, dft, softcap, chunk, compute, differentiate, compiled
        )
    return loss, {"count": count, "nll": nll, "z_loss": penalty}


@torch.no_grad()
def token_losses(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """-log p(label) of every token (N,), fp32; 0 where the label is -100. Without gradients, chunk by chunk."""
    check_tokens(labels_N, vocab=weight_VD.shape[0], ignored=True)
    compute = compute_dtype(hidden_ND)
    chunk = chunk_tokens or default_chunk(labels_N, vocab=weight_VD.shape[0])
    out_N = torch.empty(len(labels_N), dtype=sum_dtype(compute), device=hidden_ND.device)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        weight = weight_VD.to(compute)
        for part in chunks(len(labels_N), chunk):
            logits_CV = hidden_ND[part].to(compute) @ weight.T
            capped_CV = _capped(logits_CV.to(out_N.dtype), softcap)
            out_N[part] = F.cross_entropy(capped_CV, labels_N[part], reduction="none")
    return out_N


class _LinearCrossEntropy(torch.autograd.Function):
    """(loss, nll, penalty), with the gradients of the loss already made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        weights_N: Tensor | None,
        z_loss: float,
        dft: bool,
        softcap: float | None,
        chunk: int,
        compute: torch.dtype,
        differentiate: bool,
        compiled: bool,
    ) -> Terms:
        needs_hidden, needs_weight = (needed and differentiate for needed in ctx.needs_input_grad[:2])
        weight = weight_VD.to(compute)
        gradients, wanted = HeadGradients(hidden_ND, weight, (needs_hidden, needs_weight)), needs_hidden or needs_weight
        loss, nll, penalty = torch.zeros((3,), dtype=sum_dtype(compute), device=weight.device)
        terms = _terms_for(weight, compiled)
        for part in chunks(len(labels_N), chunk):
            hidden = hidden_ND[part].to(compute)
            logits = hidden @ weight.T
            weights = None if weights_N is None else weights_N[part]
            chunk_sums, grad_logits = terms(logits, labels_N[part], weights, z_loss, wanted, dft, softcap)
            loss, nll, penalty = loss + chunk_sums[0], nll + chunk_sums[1], penalty + chunk_sums[2]
            gradients.add(part, hidden, grad_logits)
        ctx.save_for_backward(gradients.hidden_ND, gradients.of_weight(weight_VD.dtype))
        ctx.mark_non_differentiable(nll, penalty)
        return loss + penalty, nll, penalty

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, *[None] * 9)


def _terms(
    logits_CV: Tensor,
    labels_C: Tensor,
    weights_C: Tensor | None,
    z_loss: float,
    differentiate: bool,
    dft: bool = False,
    softcap: float | None = None,
) -> tuple[Terms, Tensor]:
    """Of one chunk the summed loss of its tokens, nll and penalty, and the gradient of loss + penalty with respect to
    its logits."""
    if softcap is not None:
        capped_CV = _capped(logits_CV.to(sum_dtype(logits_CV.dtype)), softcap)
        sums, grad_CV = _terms(capped_CV, labels_C, weights_C, z_loss, differentiate, dft)
        if differentiate:
            grad_CV = (grad_CV * (1.0 - (capped_CV / softcap).square())).to(logits_CV.dtype)
        return sums, grad_CV
    trained_C = labels_C != IGNORED
    labels_C1 = labels_C.clamp(min=0)[:, None]
    # fp32: a bf16 log-sum over a vocabulary keeps two digits
    logp_CV = F.log_softmax(logits_CV, dim=-1, dtype=sum_dtype(logits_CV.dtype))
    label_logp_C = logp_CV.gather(1, labels_C1)[:, 0]
    logsumexp_C = logits_CV.gather(1, labels_C1)[:, 0].to(logp_CV.dtype) - label_logp_C
    weights_C = trained_C.to(logp_CV.dtype) if weights_C is None else trained_C * weights_C.to(logp_CV.dtype)
    nll = -(label_logp_C * weights_C).sum()
    penalty = z_loss * (logsumexp_C.square() * weights_C).sum()
    scales_C = weights_C * label_logp_C.exp() if dft else weights_C
    loss = -(label_logp_C * scales_C).sum() if dft else nll
    if not differentiate:
        return (loss, nll, penalty), logits_CV
    pull_C = 2.0 * z_loss * logsumexp_C  # of the penalty
    factors_C = scales_C + weights_C * pull_C if dft else weights_C * (1.0 + pull_C)
    grad_CV = logp_CV.exp_().mul_(factors_C[:, None])
    grad_CV.scatter_add_(1, labels_C1, -scales_C[:, None])
    return (loss, nll, penalty), grad_CV.to(logits_CV.dtype)


def _capped(logits_CV: Tensor, softcap: float | None) -> Tensor:
    return logits_CV if softcap is None else softcap * torch.tanh(logits_CV / softcap)


def kernel_is_there(device: torch.device) -> bool:
    """Whether Triton is installed, and the device an NVIDIA GPU."""
    on_nvidia = device.type == "cuda" and torch.version.cuda is not None
    return on_nvidia and importlib.util.find_spec("triton") is not None


def _terms_for(weight_VD: Tensor, compiled: bool) -> Callable[..., tuple[Terms, Tensor]]:
    if weight_VD.dtype != torch.float64 and kernel_is_there(weight_VD.device):
        from lifecycle.losses.gpu import terms_kernel

        return terms_kernel.terms
    if weight_VD.device.type == "cpu" and weight_VD.dtype in terms_on_cpu.DTYPES and terms_on_cpu.is_there():
        return terms_on_cpu.terms
    return _compiled_terms() if compiled else _terms


@functools.cache
def _compiled_terms() -> Callable[..., tuple[Terms, Tensor]]:
    # dynamic from the start: the kernel, and with it the last bit, must not depend on the chunks seen before
    return torch.compile(_terms, dynamic=True)
