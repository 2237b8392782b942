"""Divergence of a student's next-token distribution from a teacher's, computed from hidden states.

    p = softmax(z / T) of the student          q = softmax(z / T) of the teacher          m = beta q + (1 - beta) p
    beta = 0          KL(q || p)                                     forward
    beta = 1          KL(p || q)                                     reverse
    between           beta KL(q || m) + (1 - beta) KL(p || m)        generalised JSD (arXiv 2306.13649, equation 1)

each times T^2, which keeps the size of the gradient as T changes (arXiv 1503.02531, section 2). With
h = p d divergence / d p the gradient is  d / d z = T (h - p sum h).  At beta 0 and 1 these are the two KL divergences,
as in GKD, and not the limits of the generalised JSD, which are 0.

A teacher's output may also be stored before training: its K most probable tokens and their log-probabilities at that T
(`TopK`). All other tokens are then one more token, the tail: without it the reverse divergence would be smallest where
the student gives the teacher's K tokens no probability. The logits of one chunk of tokens exist at a time, and their
gradients are computed in the forward pass, as in `cross_entropy.py` (`chunks.py`).

Shapes: N tokens, D and E widths of student and teacher, V vocabulary, K tokens kept of the teacher, C of one chunk.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.losses.chunks import HeadGradients, chunks, compute_dtype, default_chunk, sum_dtype

NOTHING = -1e30
"""Log of probability 0: finite, so that its product with 0 is 0."""


class TopK(NamedTuple):
    """The teacher's log-probabilities at N positions. ids: (N, K) int64, its most probable tokens. logp: (N, K + 1),
    their log-probabilities, and last that of all other tokens together."""

    ids: Tensor
    logp: Tensor


class Head(NamedTuple):
    """Hidden states (N, D), the matrix (V, D) that maps them to logits, and the soft cap of the logits (None: none)."""

    hidden_ND: Tensor
    weight_VD: Tensor
    softcap: float | None = None


def divergence(
    student: Head,
    teacher: Head | TopK,
    *,
    beta: float,
    temperature: float = 1.0,
    weights_N: Tensor | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """The divergence summed over N positions, in nats times T^2: scalar, fp32 (fp64 for fp64 inputs).

    teacher: constant to the gradient; a `TopK` is of this temperature. beta: 0 to 1, see above. weights_N: factors of
    the tokens, constants to the gradient; None: all 1. Products run in the autocast dtype where autocast is on, else in
    that of the hidden states; logarithms and sums are fp32. Differentiable once, in the student's hidden states and
    head. Raises ValueError for a beta outside, a temperature of 0 or below, and vocabularies of different sizes.
    """
    if not 0 <= beta <= 1 or temperature <= 0:
        raise ValueError(f"beta={beta}, temperature={temperature}; wanted 0 to 1, and above 0")
    vocab = len(student.weight_VD)
    if isinstance(teacher, Head) and len(teacher.weight_VD) != vocab:
        raise ValueError(f"the teacher's vocabulary is {len(teacher.weight_VD)}, the student's {vocab}")
    hidden, weight, softcap = student
    chunk = chunk_tokens or default_chunk(hidden[:, 0], vocab=vocab)
    settings = (beta, temperature, softcap, chunk, compute_dtype(hidden), torch.is_grad_enabled())
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _Divergence.apply(hidden, weight, teacher, weights_N, settings)
    return loss


@torch.no_grad()
def top_k(teacher: Head, k: int, *, temperature: float = 1.0, chunk_tokens: int | None = None) -> TopK:
    """The k most probable tokens at each of N positions, the most probable first, with their log-probabilities at that
    temperature, fp32 (fp64 for fp64 inputs)."""
    hidden, weight, softcap = teacher
    chunk, compute = chunk_tokens or default_chunk(hidden[:, 0], vocab=len(weight)), compute_dtype(hidden)
    ids_NK = torch.empty(len(hidden), k, dtype=torch.long, device=hidden.device)
    logp_NB = torch.empty(len(hidden), k + 1, dtype=sum_dtype(compute), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        weight = weight.to(compute)
        for part in chunks(len(hidden), chunk):
            l_CV, _ = _log_softmax(hidden[part].to(compute) @ weight.T, temperature, softcap)
            ids_NK[part] = l_CV.topk(k).indices
            logp_NB[part] = _with_tail(l_CV, ids_NK[part])
    return TopK(ids_NK, logp_NB)


class _Divergence(torch.autograd.Function):
    """The sum of divergences; its gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, teacher: Head | TopK, weights_N: Tensor | None, settings: Any
    ) -> Tensor:
        beta, temperature, softcap, chunk, compute, differentiate = settings
        needs_hidden, needs_weight = (needed and differentiate for needed in ctx.needs_input_grad[:2])
        weight, sums = weight_VD.to(compute), sum_dtype(compute)
        if isinstance(teacher, Head):
            teacher = teacher._replace(weight_VD=teacher.weight_VD.to(compute))
        gradients = HeadGradients(hidden_ND, weight, (needs_hidden, needs_weight))
        loss = torch.zeros((), dtype=sums, device=weight.device)
        for part in chunks(len(hidden_ND), chunk):
            hidden = hidden_ND[part].to(compute)
            l_CV, slope_CV = _log_softmax(hidden @ weight.T, temperature, softcap)
            if isinstance(teacher, Head):
                z_CV = teacher.hidden_ND[part].to(compute) @ teacher.weight_VD.T
                terms_C, grad_CV = _terms(l_CV, _log_softmax(z_CV, temperature, teacher.softcap)[0], beta)
            else:
                terms_C, grad_CV = _top_k_terms(l_CV, TopK(teacher.ids[part], teacher.logp[part].to(sums)), beta)
            if weights_N is not None:
                weights_C = weights_N[part].to(sums)
                terms_C, grad_CV = terms_C * weights_C, grad_CV.mul_(weights_C[:, None])
            loss += temperature**2 * terms_C.sum()
            if needs_hidden or needs_weight:
                grad_CV = grad_CV.mul_(temperature if slope_CV is None else temperature * slope_CV)
                gradients.add(part, hidden, grad_CV.to(compute))
        ctx.save_for_backward(gradients.hidden_ND, gradients.of_weight(weight_VD.dtype))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None, None, None)


def _log_softmax(z_CV: Tensor, temperature: float, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of logits z, and the derivative of the soft cap at each logit (None without a cap)."""
    z_CV, slope_CV = z_CV.to(sum_dtype(z_CV.dtype)), None
    if softcap is not None:
        t_CV = torch.tanh(z_CV / softcap)
        z_CV, slope_CV = softcap * t_CV, 1 - t_CV.square()
    return F.log_softmax(z_CV / temperature, -1), slope_CV


def _terms(l_CV: Tensor, teacher_CV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(C,) divergences of the log-probabilities of student (`l_CV`) and teacher, and their gradients in the student's
    logits over T."""
    h_CV, terms_C = _slopes(l_CV, teacher_CV, beta)
    return terms_C, h_CV.addcmul_(l_CV.exp(), h_CV.sum(-1, keepdim=True), value=-1)


def _top_k_terms(l_CV: Tensor, teacher: TopK, beta: float) -> tuple[Tensor, Tensor]:
    """The same over the teacher's K tokens and the tail, which is all of the student's other tokens as one."""
    h_CB, terms_C = _slopes(_with_tail(l_CV, teacher.ids), teacher.logp, beta)
    # the tail's h is divided among its tokens in proportion to their probabilities
    tail_C1 = _tail(l_CV, teacher.ids)
    h_CV = (l_CV - tail_C1).exp().mul_(h_CB[:, -1:]).scatter_(1, teacher.ids, h_CB[:, :-1])
    return terms_C, h_CV.addcmul_(l_CV.exp(), h_CB.sum(-1, keepdim=True), value=-1)


def _with_tail(l_CV: Tensor, ids_CK: Tensor) -> Tensor:
    """(C, K + 1): the log-probabilities of some tokens, and of all others together."""
    return torch.cat([l_CV.gather(1, ids_CK), _tail(l_CV, ids_CK)], -1)


def _tail(l_CV: Tensor, ids_CK: Tensor) -> Tensor:
    """(C, 1): log of the total probability of all tokens but these. It is summed over them, since 1 minus the
    probability of these rounds to 0."""
    return l_CV.scatter(1, ids_CK, NOTHING).logsumexp(-1, keepdim=True)


def _slopes(l_CB: Tensor, teacher_CB: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """h = p d divergence / d p of every token, finite where p is 0, and the divergences (C,)."""
    if beta == 0:
        q_CB = teacher_CB.exp()
        return -q_CB, (q_CB * (teacher_CB - l_CB)).sum(-1)
    if beta == 1:
        h_CB = l_CB.exp() * (l_CB - teacher_CB)
        return h_CB, h_CB.sum(-1)
    m_CB = torch.logaddexp(teacher_CB + math.log(beta), l_CB + math.log1p(-beta))
    h_CB = (1 - beta) * l_CB.exp() * (l_CB - m_CB)
    return h_CB, h_CB.sum(-1) + beta * (teacher_CB.exp() * (teacher_CB - m_CB)).sum(-1)
