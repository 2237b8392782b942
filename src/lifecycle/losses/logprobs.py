"""Log-probabilities of given tokens, and entropies, straight from hidden states: for DPO and reinforcement learning.

    z = softcap(hidden @ weight') / temperature          l = log-softmax(z)          H = - sum exp(l) l
    logp = l[id]                                         over the whole vocabulary, or
    logp = l[id] - logsumexp(l over the kept set)

The kept sets are those that a `Rollout` carries: old, new and reference log-probabilities share the set that the token
was drawn from, however far the logits have moved since. The logits of one chunk of tokens exist at a time, in the
backward pass once more:

    d logp / d z = onehot(id) - softmax over the kept set          d H / d z = - exp(l) (l + H)

Shapes: N tokens, D width, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lifecycle.batch import Kept
from lifecycle.losses.chunks import HeadGradients, check_tokens, chunks, compute_dtype, default_chunk, sum_dtype

BANNED = -1e30
"""Logit of a token that may not be drawn: finite, so that 0 times it is 0."""


def token_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    ids_N: Tensor,
    *,
    temperature: float = 1.0,
    kept: Kept | None = None,
    softcap: float | None = None,
    banned_ids: Tensor | None = None,
    chunk_tokens: int | None = None,
    product_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(logp, entropy), each (N,) fp32 (fp64 for fp64 inputs): of `ids_N` given the hidden states before them.

    temperature: that of the draw; 0 counts as 1, as in drawing. kept: the sets of the N tokens (`Rollout.kept_of`),
    None for the whole vocabulary; they are constants to the gradient. banned_ids: int64, tokens without weight. The
    entropy, in nats, is the untruncated distribution's. Products run in the autocast dtype where autocast is on,
    else in that of hidden, in product_dtype where that is wider; the rest is fp32. Differentiable once, in hidden and
    weight. Memory: a few chunks of logits.
    """
    check_tokens(ids_N, vocab=weight_VD.shape[0], ignored=False)
    compute = compute_dtype(hidden_ND)
    if product_dtype is not None and product_dtype.itemsize > compute.itemsize:
        compute = product_dtype
    chunk = chunk_tokens or default_chunk(ids_N, vocab=weight_VD.shape[0])
    kept = None if kept is None or not len(kept.ids) else kept.to(hidden_ND.device)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        logp_N, entropy_N = _TokenLogprobs.apply(
            hidden_ND, weight_VD, ids_N, kept, banned_ids, temperature or 1.0, softcap, chunk, compute
        )
    return logp_N, entropy_N


@torch.no_grad()
def log_collisions(
    hidden_ND: Tensor, weight_VD: Tensor, *, softcap: float | None = None, chunk_tokens: int | None = None
) -> Tensor:
    """(N,) log sum over the vocabulary of p^2, of the distributions that follow on the hidden states: the logarithm of
    the probability that two draws are the same token. A constant, in the dtypes of `token_logprobs`."""
    compute = compute_dtype(hidden_ND)
    places_N = hidden_ND.new_zeros(len(hidden_ND), dtype=torch.int64)
    chunk = chunk_tokens or default_chunk(places_N, vocab=weight_VD.shape[0])
    with torch.autocast(hidden_ND.device.type, enabled=False):
        weight = weight_VD.to(compute)
        room_2CV = _room(weight, min(chunk, len(hidden_ND)))
        out_N = torch.empty(len(hidden_ND), dtype=room_2CV.dtype, device=hidden_ND.device)
        for part in chunks(len(hidden_ND), chunk):
            l_CV, _, _ = _softmax(hidden_ND[part].to(compute), weight, 1.0, softcap, None, room_2CV)
            out_N[part] = torch.logsumexp(2 * l_CV, -1)
    return out_N


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        ids_N: Tensor,
        kept: Kept | None,
        banned_ids: Tensor | None,
        temperature: float,
        softcap: float | None,
        chunk: int,
        compute: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        weight = weight_VD.to(compute)
        room_2CV = _room(weight, min(chunk, len(ids_N)))
        out_2N = torch.empty(2, len(ids_N), dtype=room_2CV.dtype, device=hidden_ND.device)
        for part in chunks(len(ids_N), chunk):
            hidden = hidden_ND[part].to(compute)
            l_CV, p_CV, _ = _softmax(hidden, weight, temperature, softcap, banned_ids, room_2CV)
            out_2N[:, part] = torch.stack(_terms(l_CV, p_CV, ids_N[part], _kept(kept, part, ids_N, len(weight))))
        ctx.save_for_backward(hidden_ND, weight_VD, ids_N, banned_ids, out_2N[1])
        ctx.settings = (kept, temperature, softcap, chunk, compute)
        ctx.set_materialize_grads(False)  # None for the one of the two that no gradient reaches
        logp_N, entropy_N = out_2N[0].clone(), out_2N[1].clone()
        return logp_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logp_N: Tensor | None, grad_entropy_N: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, ids_N, banned_ids, entropy_N = ctx.saved_tensors
        kept, temperature, softcap, chunk, compute = ctx.settings
        weight = weight_VD.to(compute)
        gradients = HeadGradients(hidden_ND, weight, ctx.needs_input_grad[:2])
        room_2CV = _room(weight, min(chunk, len(ids_N)))
        by_logp_N = room_2CV.new_zeros(len(ids_N)) if grad_logp_N is None else grad_logp_N / temperature
        by_entropy_N = None if grad_entropy_N is None else grad_entropy_N / temperature
        for part in chunks(len(ids_N), chunk):
            hidden = hidden_ND[part].to(compute)
            l_CV, p_CV, slope_CV = _softmax(hidden, weight, temperature, softcap, banned_ids, room_2CV)
            kept_CV = _kept(kept, part, ids_N, len(weight))
            by_entropy = None if by_entropy_N is None else (by_entropy_N[part], entropy_N[part])
            grad_CV = _gradient(l_CV, p_CV, ids_N[part], kept_CV, by_logp_N[part], by_entropy)
            gradients.add(part, hidden, (grad_CV if slope_CV is None else grad_CV.mul_(slope_CV)).to(compute))
        return (gradients.hidden_ND, gradients.of_weight(weight_VD.dtype), *[None] * 7)


def _room(weight: Tensor, tokens: int) -> Tensor:
    """(2, C, V) for the logits of all chunks in turn: on a CPU new memory costs more than what is done in it."""
    return weight.new_empty((2, tokens, len(weight)), dtype=sum_dtype(weight.dtype))


def _softmax(
    hidden_CD: Tensor,
    weight: Tensor,
    temperature: float,
    softcap: float | None,
    banned_ids: Tensor | None,
    room_2CV: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """l and exp(l), which are the room, and how steeply the cap rises at each logit (None without one)."""
    z_CV, l_CV, slope_CV = room_2CV[0, : len(hidden_CD)], room_2CV[1, : len(hidden_CD)], None
    if z_CV.dtype == weight.dtype:
        torch.mm(hidden_CD, weight.T, out=z_CV)
    else:
        z_CV.copy_(hidden_CD @ weight.T)
    if softcap is not None:
        z_CV.div_(softcap).tanh_()
        slope_CV = 1 - z_CV.square()
        z_CV.mul_(softcap)
    if temperature != 1:
        z_CV.div_(temperature)
    if banned_ids is not None and len(banned_ids):
        z_CV.index_fill_(1, banned_ids, BANNED)
    torch.log_softmax(z_CV, -1, out=l_CV)
    return l_CV, torch.exp(l_CV, out=z_CV), slope_CV


def _kept(kept: Kept | None, part: slice, ids_N: Tensor, vocab: int) -> Tensor | None:
    """(C, V) bool. The token itself is always kept: it was drawn, whatever the sets say."""
    return None if kept is None else kept.mask(part, vocab).scatter_(1, ids_N[part][:, None], True)


def _terms(l_CV: Tensor, p_CV: Tensor, ids_C: Tensor, kept_CV: Tensor | None) -> tuple[Tensor, Tensor]:
    """(logp, entropy) of one chunk."""
    entropy_C = -torch.linalg.vecdot(p_CV, l_CV)
    logp_C = l_CV.gather(1, ids_C[:, None])[:, 0]
    if kept_CV is None:
        return logp_C, entropy_C
    mass_C = (p_CV * kept_CV).sum(-1)
    # without truncation nothing is subtracted: the mass is 1 up to rounding
    return logp_C - torch.where(kept_CV.all(-1), 0, mass_C.log()), entropy_C


def _gradient(
    l_CV: Tensor,
    p_CV: Tensor,
    ids_C: Tensor,
    kept_CV: Tensor | None,
    by_logp_C: Tensor,
    by_entropy: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """(C, V) gradient of by_logp * logp + by_entropy * entropy with respect to z.

    by_entropy: with the entropies, None where it is not wanted. Overwrites l and p.
    """
    of_entropy_CV = None
    if by_entropy is not None:
        by_entropy_C, entropy_C = by_entropy
        of_entropy_CV = l_CV.add_(entropy_C[:, None]).mul_(p_CV).mul_(-by_entropy_C[:, None])
    if kept_CV is not None:
        p_CV.mul_(kept_CV)
        p_CV.div_(p_CV.sum(-1, keepdim=True))
    grad_CV = p_CV.mul_(-by_logp_C[:, None])
    grad_CV.scatter_add_(1, ids_C[:, None], by_logp_C[:, None].to(grad_CV.dtype))
    return grad_CV if of_entropy_CV is None else grad_CV.add_(of_entropy_CV)
