"""Seconds of a step by what they were spent on.

perf/sampling_s, perf/grading_s    the rest of perf/step_s is scoring by policy and reference, and the updates
rollout/tokens_per_second          tokens of completions over the seconds of sampling
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Phases:
    """A clock for the phases of one step. tokens: that this rank has sampled."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {"sampling": 0.0, "grading": 0.0}
        self.tokens = 0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count what is done inside to a phase."""
        began = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - began

    def told(self) -> dict[str, Tensor]:
        """(2,) sums and counts."""
        found = {f"perf/{name}_s": [seconds, 1.0] for name, seconds in self._seconds.items()}
        found["rollout/tokens_per_second"] = [float(self.tokens), self._seconds["sampling"]]
        return {name: torch.tensor(pair, dtype=torch.float64, device="cpu") for name, pair in found.items()}
