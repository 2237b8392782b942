"""What a frozen reference says of the trained tokens of a batch: the parent's log-probabilities, as DPO compares with.

    live      a second copy of the parent's weights, which stands beside the policy and is asked in every step
    cached    computed once before the first step (`cached.py`)
    adapter   the policy without the adapter that is trained: the frozen weights are the parent's

It computes as the policy does, with the same kernels in the same precision: before the first step both say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lifecycle.batch import DataFeed, Micro
from lifecycle.model import Decoder, DocumentMask, ModelConfig
from lifecycle.model.adapters import adapter_off
from lifecycle.stages.beside.frozen import FrozenNetwork, HeldBeside
from lifecycle.stages.preference.answers import Answers, answer_logprobs
from lifecycle.stages.run.setup import Setup


class Reference(HeldBeside, Protocol):
    """Where the log-probabilities of the reference come from; held beside the policy."""

    def logprobs(self, batch: Answers, documents: DocumentMask | None) -> Tensor:
        """(N,) of the batch's trained tokens, a constant."""


class LiveReference(FrozenNetwork):
    """A second copy of the parent's weights."""

    def __init__(self, *, config: ModelConfig, setup: Setup) -> None:
        assert setup.parent is not None
        super().__init__(config=config, read=setup.parent.read, setup=setup)

    @torch.no_grad()
    def logprobs(self, batch: Answers, documents: DocumentMask | None) -> Tensor:
        """Asked anew."""
        return answer_logprobs(self.network, batch, documents)


class WithoutAdapter:
    """The policy with its adapter off. policy: gives it, once it is built."""

    def __init__(self, policy: Callable[[], Decoder]) -> None:
        self._policy = policy

    def build(self, mesh: DeviceMesh | None) -> None:
        """Nothing stands beside the policy."""

    def begin(self, device: torch.device, feed: DataFeed) -> None:
        """Nothing is to be made."""

    def looked_up(self, batch: Micro) -> Micro:
        """It is asked, on the device."""
        return batch

    @torch.no_grad()
    def logprobs(self, batch: Answers, documents: DocumentMask | None) -> Tensor:
        """Asked anew."""
        network = self._policy()
        with adapter_off(network):
            return answer_logprobs(network, batch, documents)
