"""A `Sampling` on the device: the settings that change the form of a computation, and the others as tensors.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lifecycle.model.layers.gpu import available
from lifecycle.rollout.sampling.parameters import Sampling

MARGIN = 8
"""Candidates beyond a top-k: a few may be as probable as the last of it."""


class Form(NamedTuple):
    """Settings that change the form of the computation. width: candidates of a top-k, one of few sizes."""

    greedy: bool
    penalised: bool
    width: int | None
    top_p: bool
    min_p: bool
    banned: tuple[int, ...]

    @property
    def truncates(self) -> bool:
        """Whether some tokens are left out of a draw for their small probability."""
        return self.greedy or self.width is not None or self.top_p or self.min_p


class DeviceSampling:
    """A `Sampling` for a vocabulary, on the device: its numbers are tensors, so that what was compiled or recorded once
    serves all settings of one form."""

    def __init__(self, sampling: Sampling, *, vocab: int, device: torch.device) -> None:
        greedy, top_p = sampling.temperature == 0, sampling.top_p
        k = 1 if greedy else sampling.top_k
        k = None if k is None or k >= vocab else k
        self.form = Form(
            greedy=greedy,
            penalised=sampling.repetition_penalty != 1,
            width=None if k is None else min(4 ** math.ceil(math.log(k + MARGIN, 4)), vocab),
            top_p=not greedy and top_p is not None and top_p < 1,
            min_p=not greedy and sampling.min_p is not None,
            banned=tuple(sorted(set(sampling.banned_ids))),
        )
        # at temperature 0 the log-probabilities are those of temperature 1: the limit has entropy 0
        numbers = (sampling.temperature or 1, sampling.repetition_penalty, k or 0, top_p or 1, sampling.min_p or 1)
        self.numbers = torch.tensor(numbers, dtype=torch.float64, device=device)
        self.banned = torch.tensor(self.form.banned, dtype=torch.long, device=device) if self.form.banned else None
        self.banned_V: Tensor | None = None
        if self.banned is not None:
            self.banned_V = torch.zeros(vocab, dtype=torch.bool, device=device).index_fill_(0, self.banned, True)
        self.has_kernels = available.is_there(device)  # found out here, since compiled code cannot
        self._room: Tensor | None = None
        self.temperature, self.penalty, self.top_k, self.top_p, self.min_p = self.numbers.unbind()

    def room(self, logits_RV: Tensor) -> Tensor | None:
        """(2, R, V) to compute in, kept from draw to draw: on a CPU allocation costs more than the computation. None on
        other devices and in compiled code, which must not write to hidden buffers."""
        if not eager_on_cpu(logits_RV):
            return None
        (R, V), dtype = logits_RV.shape, sum_dtype(logits_RV)
        if self._room is None or self._room.shape[1] < R or self._room.dtype != dtype:
            self._room = torch.empty(2, R, V, dtype=dtype, device=logits_RV.device)
        return self._room[:, :R]

    def take(self, other: DeviceSampling) -> None:
        """Copy the numbers of other settings of the same form, in place."""
        self.numbers.copy_(other.numbers)


def eager_on_cpu(x: Tensor) -> bool:
    """Whether the host can read the numbers for free: an accelerator would synchronise, a compiled graph break."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def sum_dtype(logits_RV: Tensor) -> torch.dtype:
    """Of exponentials and their sums."""
    return torch.float64 if logits_RV.dtype == torch.float64 else torch.float32
