"""Sampling settings, checked once, and the random numbers of the draws (see draw.py).

    u = uniform(seed of the sequence, number of the token)

No generator has a state: a draw depends on the seed of its sequence and the number of its token alone.

Shapes: R rows.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.system.seeds import derive

KINDS = (
    (numbers.Integral, "a whole number", ("max_new_tokens", "top_k", "samples", "best_of")),
    (numbers.Real, "a number", ("temperature", "top_p", "min_p", "repetition_penalty")),
)
COLDEST = 1e-6
"""Least temperature above 0: colder, logits over it leave the range of fp32."""


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
        faults = self._kinds() or [*self._numbers(), *self._choices()]
        if faults:
            raise UserError("sampling: these settings cannot work:\n" + "\n".join(f"  - {fault}" for fault in faults))

    def _kinds(self) -> list[str]:
        """Faults: values that must be numbers and are not; true and false are not numbers here."""
        faults = []
        for kind, word, keys in KINDS:
            for key in keys:
                value, off = getattr(self, key), getattr(Sampling, key, 1) is None
                if not (value is None and off) and (isinstance(value, bool) or not isinstance(value, kind)):
                    faults.append(f"{key} is {value!r}; it must be {word}{' (None is off)' if off else ''}")
        return faults

    def _numbers(self) -> list[str]:
        whole = {"max_new_tokens": self.max_new_tokens, "samples": self.samples, "top_k": self.top_k}
        faults = [f"{k} is {v}; it must be 1 or more" for k, v in whole.items() if v is not None and not v >= 1]
        if not (self.temperature == 0 or COLDEST <= self.temperature < math.inf):
            faults.append(
                f"temperature is {self.temperature}; it must be 0 (the most probable token) or {COLDEST} and up"
            )
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

    def check_ids(self, vocab: int) -> None:
        """Refuse ids that a model of `vocab` tokens cannot draw. Errors: `UserError`."""
        faults = [
            f"{name} holds {wrong[0]}; the model draws from 0 to {vocab - 1}"
            for name, ids in (("stop_ids", self.stop_ids), ("banned_ids", self.banned_ids))
            if (wrong := [i for i in ids if not 0 <= i < vocab])
        ]
        if not faults and len(set(self.banned_ids)) == vocab:
            faults.append(f"banned_ids holds all {vocab} tokens; leave at least one to draw")
        if faults:
            raise UserError("sampling: these settings cannot work:\n" + "\n".join(f"  - {fault}" for fault in faults))


def sequence_seed(seed: int, step: int, prompt: int, sample: int) -> int:
    """A 63-bit seed from the run's seed, its step, the prompt's stable number and the sample's."""
    return derive(seed, "rollout", step, prompt, sample)


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
