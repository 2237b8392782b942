"""Detects whether the weights of a model have changed since an engine copied them.

    announced  `Decoder.weights_version`: raised by a stage's step, by `load_state_dict`, and by `weights_changed()`
    steps      of any torch optimizer in this process
    changes    torch's own count for every weight, which fused optimizers do not raise
    addresses  where every weight lies
    adapter    whether there is one that takes part now
    sample     some numbers of every weight

The first five find every change that torch makes or that was announced. The sample is for the others (`.data`, NumPy, a
user's kernel): it finds a change of a whole weight, and warns, since it would not find a change of a few numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from lifecycle.model import Decoder
from lifecycle.system.shards import local_part

SAMPLED = 64
"""Numbers looked at of every weight, evenly spaced."""

logger = logging.getLogger(__name__)


class StepCount:
    """How many steps torch's optimizers took in this process, from the first engine on."""

    def __init__(self) -> None:
        self.taken = 0
        register_optimizer_step_post_hook(self._count)

    def _count(self, *_: Any) -> None:
        # compiled steps would be compiled again for every number; their weights are written by torch, which counts
        if not torch.compiler.is_compiling():
            self.taken += 1


@cache
def optimizer_steps() -> StepCount:
    """The one count of the process."""
    return StepCount()


@dataclass(frozen=True, kw_only=True)
class Version:
    """The identity of a model's weights at one moment; see the top of the file.

    adapted: with its adapter. changes: None in inference mode, where torch does not count.
    """

    announced: int
    adapted: bool
    steps: int
    addresses: list[int]
    changes: list[int] | None
    sample: Tensor

    @classmethod
    def of(cls, model: Decoder) -> Version:
        """The version of the model's present weights."""
        weights = [local_part(weight) for weight in (*model.parameters(), *model.buffers())]
        counted = not any(weight.is_inference() for weight in weights)
        return cls(
            announced=model.weights_version,
            adapted=model.adapter is not None and not model.adapter_is_off,
            steps=optimizer_steps().taken,
            addresses=[w.data_ptr() for w in weights],
            changes=[w._version for w in weights] if counted else None,
            sample=_sample(weights),
        )

    def surely_is(self, other: Version) -> bool:
        """Whether certainly no weight has changed between the two; False also where that is not known."""
        mine, theirs = ((v.announced, v.adapted, v.steps, v.addresses, v.changes) for v in (self, other))
        if self.changes is None or mine != theirs:
            return False
        if torch.equal(self.sample, other.sample):
            return True
        logger.warning(
            "weights changed without notice (written through .data, NumPy or a kernel that torch does not know?): call "
            "model.weights_changed() after such a change, since a smaller one might not be noticed"
        )
        return False


def _sample(weights: Iterable[Tensor]) -> Tensor:
    """Bit patterns, so that what is not a number equals itself."""
    parts = [w.detach().reshape(-1)[:: max(1, w.numel() // SAMPLED)].double() for w in weights]
    return torch.cat(parts).view(torch.int64)
