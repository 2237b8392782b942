"""A network beside the trained one that is evaluated and never trained: a reference, a teacher.

It is not a submodule of the stage, so it is neither in the optimizer nor in a checkpoint: a resumed run reads its
weights again from their source. It is sharded where the trained network is, and computes with the same kernels in the
same precision, so that equal weights give equal log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lifecycle.batch import DataFeed, Micro
from lifecycle.model import Decoder, ModelConfig
from lifecycle.stages.run.setup import Setup


class HeldBeside(Protocol):
    """An object that a stage holds beside its network; `Stage` calls all methods on every rank."""

    def build(self, mesh: DeviceMesh | None) -> None:
        """Called when the stage builds its own network. mesh: the ranks that weights are sharded over; None: one."""

    def begin(self, device: torch.device, feed: DataFeed) -> None:
        """Called before the first step and the first validation of a process, when the stage's network is on
        `device`."""

    def looked_up(self, batch: Micro) -> Micro:
        """Called with a micro-batch that is still on the CPU, where a look at it waits for nothing: the batch with what
        is known of it."""


class Together:
    """Several objects beside one network."""

    def __init__(self, held: Sequence[HeldBeside]) -> None:
        self._held = held

    @classmethod
    def of(cls, *held: HeldBeside | None) -> HeldBeside | None:
        """Those that there are, as one; None where there are none."""
        there = [one for one in held if one is not None]
        return cls(there) if len(there) > 1 else there[0] if there else None

    def build(self, mesh: DeviceMesh | None) -> None:
        """Build each."""
        for one in self._held:
            one.build(mesh)

    def begin(self, device: torch.device, feed: DataFeed) -> None:
        """Begin each."""
        for one in self._held:
            one.begin(device, feed)

    def looked_up(self, batch: Micro) -> Micro:
        """With what each knows of the batch."""
        for one in self._held:
            batch = one.looked_up(batch)
        return batch


class FrozenNetwork:
    """The decoder of `config` with the weights that `read` returns: fp32, by the names of `Decoder.state_dict`. `build`
    raises the `UserError` of `read` where they cannot be read. dtype, head: those that its weights, and its head, are
    kept in at least. within: a module that it becomes a part of, as `network`, where checkpoints have to hold it."""

    def __init__(
        self,
        *,
        config: ModelConfig,
        read: Callable[[], Mapping[str, Tensor]],
        setup: Setup,
        dtype: torch.dtype | None = None,
        head: torch.dtype | None = None,
        within: nn.Module | None = None,
    ) -> None:
        self._config, self._read, self._setup = config, read, setup
        self._dtype, self._head, self._within = dtype, head, within
        self._network: Decoder | None = None

    @property
    def network(self) -> Decoder:
        """The network, once `build` was called; to be evaluated without gradients."""
        assert self._network is not None
        return self._network

    def build(self, mesh: DeviceMesh | None) -> None:
        """Read the weights; with a mesh, each rank keeps its own shards of them."""
        if self._network is None:
            made = self._setup.build_frozen(self._config, mesh, self._read, dtype=self._dtype, head=self._head)
            self._network = made
            if self._within is not None:
                self._within.network = made.train()  # without gradients the same; Lightning warns of the other mode

    def begin(self, device: torch.device, feed: DataFeed) -> None:
        """Move the network to the stage's device."""
        self.network.to(device)

    def looked_up(self, batch: Micro) -> Micro:
        """It is asked, on the device."""
        return batch
