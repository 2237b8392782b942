"""How completions are drawn: the settings, checked once, and the drawing itself as pure functions of logits.

    logits -> penalty on seen tokens -> / temperature -> log-softmax = the untruncated log-probabilities l
    top-k, top-p and min-p are each a threshold on l: the kept set is {l >= threshold}, whatever made it
    token = the first whose cumulative kept probability passes u,  u = uniform(seed of the sequence, number of token)

One number a token, its threshold, is all that a later pass needs to draw up the same kept set. It lies half-way
between the least kept and the greatest dropped log-probability, so that a rounding elsewhere moves no token over the
edge; equal log-probabilities are kept or dropped together. No generator has a state: a draw depends on the sequence's
seed and the token's number, on nothing beside it.

Shapes: R rows, V vocabulary, W candidates looked at.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.errors import UserError

BANNED = -1e30
"""Log-probability of a token that may not be drawn: finite, so that 0 times it is 0."""

TIE = 2e-5
"""Log-probabilities this near are equal: no rounding may tell them apart at the edge of a kept set."""

SMALLEST = -80.0
"""Log-probability from which on a token counts as impossible."""

CANDIDATES = 256
"""On a CPU a top-p or min-p looks at so many of the most probable tokens before it looks at all of them."""

MARGIN = 8
"""Candidates beyond a top-k: a few may be as probable as the last of it."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of one generation. Errors: `UserError` that lists every fault at once.

    temperature: 0 takes the most probable token. top_k, top_p, min_p: None is off; in this order, top_p within what
    top_k kept. repetition_penalty: above 1 makes tokens less probable that the prompt or the completion already holds
    (arXiv 1909.05858, section 4.1). stop_ids, stop_strings: what ends a completion, and belongs to it. banned_ids are
    never drawn. samples: completions a prompt; best_of: so many are drawn, of which the `samples` with the best mean or
    summed untruncated log-probability stay.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    banned_ids: tuple[int, ...] = ()
    samples: int = 1
    best_of: int | None = None
    best_by: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        faults = [*self._numbers(), *self._choices()]
        if faults:
            raise UserError("sampling: these settings cannot work:\n" + "\n".join(f"  - {fault}" for fault in faults))

    def _numbers(self) -> list[str]:
        whole = {"max_new_tokens": self.max_new_tokens, "samples": self.samples, "top_k": self.top_k}
        faults = [f"{k} is {v}; it must be 1 or more" for k, v in whole.items() if v is not None and not v >= 1]
        if not 0 <= self.temperature < math.inf:
            faults.append(f"temperature is {self.temperature}; it must be 0 (the most probable token) or above")
        for key, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                faults.append(f"{key} is {share}; it must be above 0 and at most 1 (null is off)")
        if not 0 < self.repetition_penalty < math.inf:
            faults.append(f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1 is off)")
        return faults

    def _choices(self) -> list[str]:
        faults = []
        if self.best_of is not None and self.best_of < self.samples:
            faults.append(f"best_of is {self.best_of}, but samples is {self.samples}; draw at least as many as stay")
        if self.best_by not in ("mean", "sum"):
            faults.append(f"best_by is {self.best_by!r}; choose mean or sum")
        if any(not text for text in self.stop_strings):
            faults.append("stop_strings holds an empty string, which would stop everything; remove it")
        return faults

    @property
    def drawn(self) -> int:
        """Completions drawn for each prompt."""
        return self.samples if self.best_of is None else self.best_of

    @property
    def truncates(self) -> bool:
        """Whether some tokens are left out of a draw for their small probability."""
        return self.temperature == 0 or any(x is not None for x in (self.top_k, self.top_p, self.min_p))


class Drawn(NamedTuple):
    """One token for each row: ids (R,) int64, the rest (R,) in the dtype of the sums (fp32, fp64 for fp64 logits).

    logprobs: under the distribution drawn from; full_logprobs: under the untruncated one (same temperature and
    penalty), whose entropy in nats `entropy` is; threshold: on untruncated log-probabilities, -inf without truncation.
    """

    ids: Tensor
    logprobs: Tensor
    full_logprobs: Tensor
    entropy: Tensor
    threshold: Tensor


def draw(
    logits_RV: Tensor,
    uniforms_R: Tensor,
    sampling: Sampling,
    *,
    seen_RV: Tensor | None = None,
    banned_ids: Tensor | None = None,
) -> Drawn:
    """Draw one token a row. `uniforms_R` in [0, 1), fp64; `seen_RV` bool, tokens that the penalty falls on.

    `banned_ids` int64, `sampling.banned_ids` on the device.
    """
    logp_RV = log_probabilities(logits_RV, sampling, seen_RV=seen_RV, banned_ids=banned_ids)
    # below SMALLEST exactly 0: numbers near the end of fp32 take a CPU a hundred times as long
    p_RV = F.threshold(logp_RV, SMALLEST, -torch.inf).exp()
    entropy_R = -torch.linalg.vecdot(p_RV, logp_RV)
    if not sampling.truncates:
        ids_R, _ = _invert(p_RV, uniforms_R)
        full_R = logp_RV.gather(1, ids_R[:, None])[:, 0]
        return Drawn(ids_R, full_R, full_R, entropy_R, torch.full_like(full_R, -torch.inf))
    found = _among_candidates(logp_RV, uniforms_R, sampling)
    ids_R, mass_R, threshold_R = _among_all(logp_RV, p_RV, uniforms_R, sampling) if found is None else found
    full_R = logp_RV.gather(1, ids_R[:, None])[:, 0]
    return Drawn(ids_R, (full_R - mass_R.log()).to(full_R.dtype), full_R, entropy_R, threshold_R)


def _among_all(logp_RV: Tensor, p_RV: Tensor, uniforms_R: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mass of their kept sets, thresholds, each (R,)."""
    threshold_R = threshold(logp_RV, sampling)
    ids_R, mass_R = _invert(p_RV.masked_fill(logp_RV < threshold_R[:, None], 0), uniforms_R)
    return (logp_RV.argmax(-1) if sampling.temperature == 0 else ids_R), mass_R, threshold_R


def _among_candidates(logp_RV: Tensor, uniforms_R: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor] | None:
    """The same from the few most probable tokens, where they hold every kept set; None where they do not.

    To the bit: the tokens left out would add zeros to the sums. On an accelerator the check would wait for the device,
    and in compiled code it would break the graph.
    """
    k = 1 if sampling.temperature == 0 else sampling.top_k
    width = CANDIDATES if k is None else k + MARGIN
    if logp_RV.device.type != "cpu" or torch.compiler.is_compiling() or width >= logp_RV.shape[1]:
        return None
    best_RW, ids_RW = logp_RV.topk(width)
    threshold_R = threshold(best_RW, sampling)
    if bool((best_RW[:, -1] >= threshold_R).any()):
        return None
    ids_RW, order_RW = ids_RW.sort(-1)
    best_RW = best_RW.gather(1, order_RW)
    place_R, mass_R = _invert(best_RW.exp().masked_fill_(best_RW < threshold_R[:, None], 0), uniforms_R)
    if sampling.temperature == 0:
        place_R = best_RW.argmax(-1)
    return ids_RW.gather(1, place_R[:, None])[:, 0], mass_R, threshold_R


def log_probabilities(
    logits_RV: Tensor, sampling: Sampling, *, seen_RV: Tensor | None = None, banned_ids: Tensor | None = None
) -> Tensor:
    """(R, V) untruncated log-probabilities in fp32 (fp64 for fp64 logits): penalty, temperature, log-softmax.

    At temperature 0 those of temperature 1: the limit has no entropy to speak of.
    """
    z_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
    if seen_RV is not None and sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        z_RV = torch.where(seen_RV, torch.where(z_RV > 0, z_RV / penalty, z_RV * penalty), z_RV)
    if sampling.temperature not in (0, 1):
        z_RV = z_RV / sampling.temperature
    if banned_ids is not None and len(banned_ids):
        z_RV = z_RV.index_fill(1, banned_ids, BANNED)
    return z_RV.log_softmax(-1)


def threshold(logp_RV: Tensor, sampling: Sampling) -> Tensor:
    """(R,) kept are the tokens whose untruncated log-probability is not below it; at least one is."""
    k = 1 if sampling.temperature == 0 else sampling.top_k
    if k is not None and k >= logp_RV.shape[1]:
        k = None
    top_p, min_p = sampling.top_p, sampling.min_p
    if k is not None and (k == 1 or (top_p is None and min_p is None)):
        best_RW = logp_RV.topk(k + 1).values
        return _between(best_RW[:, k - 1], best_RW[:, k])
    edges = []
    if k is not None:
        edges.append(logp_RV.topk(k).values[:, -1])
    if top_p is not None and top_p < 1:
        edges.append(_top_p_edge(logp_RV, top_p, edges[0] if edges else None))
    if min_p is not None:
        edges.append(logp_RV.amax(-1) + math.log(min_p))
    if not edges:
        return torch.full_like(logp_RV[:, 0], -torch.inf)
    kept_RV = logp_RV >= torch.stack(edges).amax(0)[:, None]
    least_R = logp_RV.masked_fill(~kept_RV, torch.inf).amin(-1)
    return _between(least_R, logp_RV.masked_fill(kept_RV, -torch.inf).amax(-1))


def _top_p_edge(logp_RV: Tensor, top_p: float, floor_R: Tensor | None) -> Tensor:
    """(R,) the least log-probability of the smallest set of the most probable tokens that holds `top_p` of the mass.

    `floor_R`: the mass is that of the tokens not below it (what a top-k before it kept).
    """
    mass_R = 1.0 if floor_R is None else (logp_RV.exp() * (logp_RV >= floor_R[:, None])).sum(-1, keepdim=True)
    best_RV = logp_RV.sort(-1, descending=True).values
    p_RV = best_RV.exp()
    kept_R = (p_RV.cumsum(-1) - p_RV < top_p * mass_R).sum(-1).clamp(min=1)
    return best_RV.gather(1, kept_R[:, None] - 1)[:, 0]


def _between(kept_R: Tensor, dropped_R: Tensor) -> Tensor:
    """Half-way from the least kept to the greatest dropped; below both where they are equal."""
    return torch.where(kept_R - dropped_R > TIE, (kept_R + dropped_R) / 2, kept_R - 2 * TIE)


def _invert(p_RV: Tensor, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
    """The token (R,) at which the cumulative probability passes u times its total (R,), in the order of ids: there a
    rounding moves the edges by as much, where in the order of probabilities it could swap two tokens."""
    sums_RV = p_RV.cumsum(-1, dtype=torch.float64)
    mass_R = sums_RV[:, -1]
    ids_R = torch.searchsorted(sums_RV, (uniforms_R * mass_R)[:, None], right=True)[:, 0]
    return ids_R.clamp(max=p_RV.shape[1] - 1), mass_R


# -- randomness


def sequence_seed(seed: int, step: int, prompt: int, sample: int) -> int:
    """A 63-bit seed from the run's seed, its step, the prompt's stable number and the sample's."""
    digest = hashlib.blake2b(f"{seed}:{step}:{prompt}:{sample}".encode(), digest_size=8, person=b"rollout").digest()
    return int.from_bytes(digest, "little") >> 1


def uniforms(seeds_R: Tensor, numbers_R: Tensor) -> Tensor:
    """(R,) fp64 in [0, 1): output `numbers_R` of the SplitMix64 generator (Steele, Lea and Flood 2014) that each of
    `seeds_R` starts, int64 both. Integer arithmetic that wraps around: the same bits on every device."""
    x = seeds_R + (numbers_R + 1) * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shifted(x, 31)
    return _shifted(x, 11).double() * 2.0**-53


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits with zeros coming in, as of an unsigned number."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def device_ids(ids: Sequence[int], device: torch.device) -> Tensor | None:
    """Ids as a tensor; None for none."""
    return torch.tensor(sorted(set(ids)), dtype=torch.long, device=device) if ids else None
