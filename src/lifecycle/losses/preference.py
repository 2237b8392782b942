"""Preference losses, from the log-probabilities of whole answers under the policy and a frozen reference.

    u = log pi(y | x) - log pi_ref(y | x), summed over the answer's tokens        w: chosen, l: rejected
    m = u_w - u_l                                                                 mean: u / tokens of the answer

Every loss is a function of P pairs (`kto`: of Q single answers) that gives one value for each, before any mean. Which
projects mean what by the same name: docs/finetuning.md. `nll` and what contains it divide by the tokens of the step's
chosen answers, a number that the caller has counted over all micro-batches and ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
"""The divergence between policy and reference, which is f in f-DPO (arXiv 2309.16240); reverse_kl is that of DPO."""

LEAST_GAP = 1e-7
"""Mean log-probabilities are clamped to at most minus this before log odds are taken: at 0 the odds are infinite."""

GREATEST_EXPONENT = 80.0
"""Exponents are clamped to it: its exponential is finite in fp32."""


@dataclass(frozen=True, kw_only=True)
class PairLogprobs:
    """Of P pairs, (P,) each: log-probabilities of both answers, summed over their tokens, under the policy and under
    the reference (a constant; None where the loss needs none), and how many tokens they have."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor | None
    reference_rejected: Tensor | None
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """u_w: log of the policy's probability over the reference's."""
        assert self.reference_chosen is not None
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """u_l."""
        assert self.reference_rejected is not None
        return self.rejected - self.reference_rejected

    @property
    def margin(self) -> Tensor:
        """m = u_w - u_l."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_margin(self) -> Tensor:
        """The same with each u divided by the tokens of its answer."""
        return self.chosen_ratio / self.chosen_tokens - self.rejected_ratio / self.rejected_tokens


@dataclass(frozen=True, kw_only=True)
class AnswerLogprobs:
    """Of Q single answers, (Q,) each: log-probabilities summed over their tokens, under the policy and the reference;
    wanted: whether the answer is labelled good."""

    policy: Tensor
    reference: Tensor
    wanted: Tensor

    @property
    def ratio(self) -> Tensor:
        """u."""
        return self.policy - self.reference


# -- with a reference


def sigmoid(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """DPO: -log sigmoid(beta m) (arXiv 2305.18290, eq. 7)."""
    return -F.logsigmoid(beta * pairs.margin)


def conservative(pairs: PairLogprobs, *, beta: float, smoothing: float) -> Tensor:
    """Conservative DPO: the expected DPO loss where a share `smoothing` of the labels is swapped."""
    return _smoothed(beta * pairs.margin, smoothing)


def robust(pairs: PairLogprobs, *, beta: float, smoothing: float) -> Tensor:
    """DPO whose mean over labels flipped at rate `smoothing` < 1/2 is the loss of the right ones (arXiv 2403.00409)."""
    z = beta * pairs.margin
    return -((1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)) / (1 - 2 * smoothing)


def hinge(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """max(0, 1 - beta m) (SLiC, arXiv 2305.10425, on ratios to a reference)."""
    return F.relu(1 - beta * pairs.margin)


def ipo(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """(mean margin - 1 / (2 beta))^2: IPO (arXiv 2310.12036, eq. 17) on means over the tokens, as in its authors'
    experiments."""
    return (pairs.mean_margin - 1 / (2 * beta)).square()


def ipo_sum(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """(m - 1 / (2 beta))^2: IPO's equation 17 to the letter, on sums."""
    return (pairs.margin - 1 / (2 * beta)).square()


def sigmoid_norm(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """-log sigmoid(beta mean margin): length-normalised DPO (arXiv 2411.15124)."""
    return -F.logsigmoid(beta * pairs.mean_margin)


def apo_zero(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """1 - sigmoid(beta u_w) + sigmoid(beta u_l): chosen answers up, rejected ones down (arXiv 2408.06266, eq. 7)."""
    return torch.sigmoid(-beta * pairs.chosen_ratio) + torch.sigmoid(beta * pairs.rejected_ratio)


def apo_down(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """sigmoid(beta u_w) + 1 - sigmoid(beta m): both down, rejected ones faster (arXiv 2408.06266, eq. 8)."""
    return torch.sigmoid(beta * pairs.chosen_ratio) + torch.sigmoid(-beta * pairs.margin)


def nca(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """-log sigmoid(beta u_w) - 1/2 log sigmoid(-beta u_w) - 1/2 log sigmoid(-beta u_l) (NCA, arXiv 2402.05369)."""
    z_w, z_l = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    return -F.logsigmoid(z_w) - 0.5 * F.logsigmoid(-z_w) - 0.5 * F.logsigmoid(-z_l)


def bco_pair(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """-log sigmoid(beta u_w) - log sigmoid(-beta u_l): BCO (arXiv 2404.04656) on pairs, without its running shift."""
    return -F.logsigmoid(beta * pairs.chosen_ratio) - F.logsigmoid(-beta * pairs.rejected_ratio)


def sppo(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """(u_w - 1/(2 beta))^2 + (u_l + 1/(2 beta))^2: SPPO with certain judgements (arXiv 2405.00675, eq. 4.7)."""
    return (pairs.chosen_ratio - 0.5 / beta).square() + (pairs.rejected_ratio + 0.5 / beta).square()


def exo(pairs: PairLogprobs, *, beta: float, smoothing: float) -> Tensor:
    """KL from (sigmoid(beta m), sigmoid(-beta m)) to (1 - smoothing, smoothing) (arXiv 2402.00856, eq. 16)."""
    z = beta * pairs.margin
    log_w, log_l = F.logsigmoid(z), F.logsigmoid(-z)
    return log_w.exp() * (log_w - math.log1p(-smoothing)) + log_l.exp() * (log_l - math.log(smoothing))


def discopop(pairs: PairLogprobs, *, beta: float, tau: float) -> Tensor:
    """(1 - g) (-log sigmoid(z)) + g exp(-z) with z = beta m, g = sigmoid(z / tau): the log-ratio modulated loss that a
    language model found (arXiv 2406.08414, eq. 5)."""
    z = beta * pairs.margin
    gate = torch.sigmoid(z / tau)
    return -F.logsigmoid(z) * (1 - gate) + torch.exp((-z).clamp(max=GREATEST_EXPONENT)) * gate


def aot(pairs: PairLogprobs, *, beta: float, smoothing: float, quantiles: Tensor) -> Tensor:
    """`conservative` on d - q: d = log pi_w - log pi_l, q the reference's difference at the same quantile of the step.
    AOT (arXiv 2406.05882) compares distributions of pairs. quantiles: (2, S), from `quantiles_of`."""
    d = pairs.chosen - pairs.rejected
    return _smoothed(beta * (d - _across(d, quantiles[0], quantiles[1])), smoothing)


def aot_unpaired(pairs: PairLogprobs, *, beta: float, smoothing: float, quantiles: Tensor) -> Tensor:
    """`conservative` on u_w - u_l, each compared with the other side's at the same quantile of the step, whichever pair
    that is of (AOT for answers that are no pairs). quantiles: (2, S), from `quantiles_of`, of u_w and of u_l.

    Over the step the values are those of the sorted u_w minus the sorted u_l, and so are the gradients of both.
    """
    u_w, u_l = pairs.chosen_ratio, pairs.rejected_ratio
    chosen = _smoothed(beta * (u_w - _across(u_w, quantiles[0], quantiles[1])), smoothing)
    rejected = _smoothed(beta * (_across(u_l, quantiles[1], quantiles[0]) - u_l), smoothing)
    return chosen + rejected - rejected.detach()


def quantiles_of(one: Tensor, other: Tensor) -> Tensor:
    """(2, S): what `aot` compares of all S pairs of a step (log pi_w - log pi_l under policy and reference; for
    `aot_unpaired` u_w and u_l), each ascending; a constant to the gradient."""
    return torch.stack([one.sort().values, other.sort().values]).detach()


# -- without a reference


def simpo(pairs: PairLogprobs, *, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (mean log pi_w - mean log pi_l) - gamma) (SimPO, arXiv 2405.14734, eq. 6)."""
    means = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return -F.logsigmoid(beta * means - gamma)


def nll(pairs: PairLogprobs, *, tokens_per_pair: Tensor) -> Tensor:
    """Negative log-likelihood of a token of the chosen answers: the mean over pairs is the mean over all tokens.

    tokens_per_pair: (), tokens of the chosen answers of the whole step, over its pairs.
    """
    return -pairs.chosen / tokens_per_pair


def cpo(pairs: PairLogprobs, *, beta: float, alpha: float, tokens_per_pair: Tensor) -> Tensor:
    """-log sigmoid(beta (log pi_w - log pi_l)) + alpha nll (CPO, arXiv 2401.08417)."""
    preferred = -F.logsigmoid(beta * (pairs.chosen - pairs.rejected))
    return preferred + alpha * nll(pairs, tokens_per_pair=tokens_per_pair)


def orpo(pairs: PairLogprobs, *, beta: float, tokens_per_pair: Tensor) -> Tensor:
    """nll - beta log sigmoid(log odds_w - log odds_l), odds = p / (1 - p), log p the mean over the tokens (ORPO, arXiv
    2403.07691, eq. 6)."""
    odds_w, odds_l = _log_odds(pairs.chosen / pairs.chosen_tokens), _log_odds(pairs.rejected / pairs.rejected_tokens)
    return nll(pairs, tokens_per_pair=tokens_per_pair) - beta * F.logsigmoid(odds_w - odds_l)


# -- single answers


def kto(
    answers: AnswerLogprobs, *, beta: float, wanted_weight: float, unwanted_weight: float, baseline: Tensor
) -> Tensor:
    """Good ones: wanted_weight (1 - sigmoid(beta (u - z))); bad ones: unwanted_weight (1 - sigmoid(beta (z - u))).

    baseline: (), the z of KTO (arXiv 2402.01306), from `kto_baseline`.
    """
    z = beta * (answers.ratio - baseline)
    good, bad = wanted_weight * torch.sigmoid(-z), unwanted_weight * torch.sigmoid(z)
    return torch.where(answers.wanted, good, bad)


def kto_baseline(ratio_sum: Tensor, count: Tensor) -> Tensor:
    """z = max(0, mean u) over answers paired with prompts of other answers: an estimate of KL(policy || reference),
    without a gradient. ratio_sum: (), sum of u; count: (), number of answers; 0 where there are none."""
    return (ratio_sum / count.clamp(min=1)).clamp(min=0).detach()


# -- what changes the pairs that a loss is given, and what they count


def diverged(pairs: PairLogprobs, divergence: Divergence, *, alpha: float) -> PairLogprobs:
    """The pairs with f'(exp u) in the place of u, which makes a loss of ratios one of f-DPO (arXiv 2309.16240).

    alpha: of the alpha-divergence, 0 < alpha < 1; near 1 it becomes reverse_kl.
    """
    if divergence == "reverse_kl":
        return pairs
    chosen, rejected = (_slope(u, divergence, alpha) for u in (pairs.chosen_ratio, pairs.rejected_ratio))
    zero = torch.zeros_like(chosen)
    return replace(pairs, chosen=chosen, rejected=rejected, reference_chosen=zero, reference_rejected=zero)


def wpo_weights(chosen_excess: Tensor, rejected_excess: Tensor, pairs: PairLogprobs) -> Tensor:
    """(P,): how likely the policy itself writes both answers, by which WPO (arXiv 2406.11827, eq. 2) weighs the loss of
    a pair: the product over both of exp(mean over the tokens of log p - log sum_v p_v^2); a constant.

    excess: of each answer, the sum over its tokens of log p - log sum_v p_v^2. Tokens as likely as the policy's draws
    count about 1, those that it would hardly draw next to nothing.
    """
    means = chosen_excess / pairs.chosen_tokens + rejected_excess / pairs.rejected_tokens
    return means.detach().exp()


def shared_length(logp_N: Tensor, sequence_N: Tensor, tokens_Q: Tensor, *, tail: float) -> Tensor:
    """(N,) log-probabilities of tokens, those behind the length of the shorter answer of a pair times `tail`: LD-DPO
    (arXiv 2409.06411). tail 1 is DPO.

    sequence_N: ascending, the answer of each token; 2 p and 2 p + 1 are those of pair p. tokens_Q: of each answer.
    """
    begin_Q = tokens_Q.cumsum(0) - tokens_Q
    shared_P = torch.minimum(tokens_Q[0::2], tokens_Q[1::2])
    place_N = torch.arange(len(sequence_N), device=sequence_N.device) - begin_Q[sequence_N]
    return torch.where(place_N < shared_P[sequence_N // 2], logp_N, tail * logp_N)


def _across(values: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """What stands in `other` at the quantile that each value has in `own`; both ascending."""
    # between two neighbours: what was computed twice may differ in its last bit
    return other[torch.searchsorted((own[1:] + own[:-1]) / 2, values.detach())]


def _smoothed(z: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)


def _log_odds(mean_logp: Tensor) -> Tensor:
    """log p - log(1 - p), without cancellation at either end."""
    logp = mean_logp.clamp(max=-LEAST_GAP)
    near = torch.log(-torch.expm1(torch.clamp(logp, min=-math.log(2))))
    far = torch.log1p(-torch.exp(torch.clamp(logp, max=-math.log(2))))
    return logp - torch.where(logp > -math.log(2), near, far)


def _slope(u: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """f'(t) at t = exp(u)."""
    if divergence == "forward_kl":
        return 1 - torch.exp((-u).clamp(max=GREATEST_EXPONENT))
    if divergence == "js":
        return math.log(2) + F.logsigmoid(u)
    return torch.expm1(((alpha - 1) * u).clamp(max=GREATEST_EXPONENT)) / (alpha - 1)
